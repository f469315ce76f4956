"""Clean sessions are seldom called anything else, however many runs, rounded or fast; disturbed ones are caught."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from simulated_studies import STUDIES, at_most

from nullarm.bench.judging import SessionJudgement, judge_session
from nullarm.bench.runs import State
from nullarm.bench.session import Session
from nullarm.bench.settings import BenchSettings
from nullarm.bench.spread import assess
from nullarm.bench.subjects import Timing
from nullarm.stats.contamination import compare_spread
from nullarm.stats.verdict import Verdict
from support.machines import QUIET, SimulatedMachine, Trouble


def alarms(
    runs: int, *, sd: float = 0.1, decimals: int | None = None, speed_up: float = 1.0, disturbed: float = 0.0
) -> dict[State, float]:
    """Share of sessions in each state by our rule: two arms of `runs` at 39 tok/s, one sped up or disturbed.

    `disturbed` is the most that a run of one arm loses.
    """
    rng = np.random.default_rng(runs)
    counts = dict.fromkeys(State, 0)
    for _ in range(STUDIES):
        first, second = 39 + sd * rng.normal(size=(2, runs))
        second = speed_up * second - disturbed * rng.random(runs)
        if decimals is not None:
            first, second = first.round(decimals), second.round(decimals)
        counts[assess(compare_spread(second, first), "ours").state] += 1
    return {state: count / STUDIES for state, count in counts.items()}


@pytest.mark.parametrize("runs", [3, 4, 5, 10, 20])
@pytest.mark.parametrize("noise", [{"sd": 0.5}, {"sd": 0.15, "decimals": 1}, {"sd": 0.03, "decimals": 1}])
def test_clean_sessions_raise_no_alarm(runs: int, noise: dict[str, float]) -> None:
    found = alarms(runs, **noise)  # type: ignore[arg-type]
    assert found[State.SUSPECT] + found[State.CONTAMINATED] <= at_most(0.05)
    assert found[State.CONTAMINATED] <= at_most(0.02)


def test_a_faster_arm_raises_no_alarm() -> None:
    """Noise is a share of the speed, so three times the speed has nine times the variance."""
    found = alarms(10, speed_up=3.0)
    assert found[State.SUSPECT] + found[State.CONTAMINATED] <= at_most(0.05)


def test_disturbed_sessions_are_caught() -> None:
    found = alarms(10, disturbed=2.0)
    assert found[State.CONTAMINATED] >= 0.7
    assert found[State.CLEAN] <= 0.05


SESSIONS = 200
"""As many as the promise names: of idle ones, at most 5 % are called contaminated."""


def session(seed: int, *, busy: float = 0.0) -> SessionJudgement:
    """A session from its warm-up to its judgement, every other one on a GPU, each with noise of its own.

    Sentinels scatter by 0.5 to 4 % and, one reading in fifty, by 20 %; runs by 0.1 to 2 %. `busy` is the share of runs
    during which somebody else takes a core and a tenth of the speed.
    """
    rng = np.random.default_rng(seed)
    load, scatter = rng.random(1000) < busy, rng.uniform(0.001, 0.02)
    machine = SimulatedMachine(
        rng, gpu=seed % 2 == 1, noise=rng.uniform(0.005, 0.04),
        trouble=lambda run: Trouble(0.1, foreign_cpus=1.95) if load[run] else QUIET,
    )  # fmt: skip

    def run(arm: str) -> Timing:
        timing, factor = machine.run(arm), np.exp(scatter * rng.normal()) * (1 + machine.trouble(machine.runs).slow)
        return replace(timing, latencies_s=tuple(factor * seconds for seconds in timing.latencies_s))

    runs = [run for block in Session(BenchSettings(), run, machine.instruments, rng=rng).blocks() for run in block]
    return judge_session(runs, margin=0.005, seed=seed)


def test_whole_sessions_on_an_idle_machine_are_believed() -> None:
    counts = Counter(session(seed).session for seed in range(SESSIONS))
    assert counts[State.CONTAMINATED] <= 0.05 * SESSIONS, counts
    assert counts[State.SUSPECT] <= 0.10 * SESSIONS, counts


def test_whole_sessions_on_a_loaded_machine_are_invalid() -> None:
    for seed in range(20):
        found = session(seed, busy=0.7)
        assert (found.verdict, found.session) == (Verdict.INVALID, State.CONTAMINATED)
        assert "foreign CPU load in" in found.reasons[1]
