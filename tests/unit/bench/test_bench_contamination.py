from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from nullarm.bench.contamination import Judged, judge_run, judge_runs
from nullarm.bench.runs import Phase, Run, State
from nullarm.bench.settings import Thresholds
from nullarm.bench.weather import GpuLook, Reading, Weather, all_looks

LIMITS = Thresholds()
USUAL = {
    "gemm": (2e-3 * np.exp(0.01 * np.random.default_rng(0).normal(size=40))).tolist(),
    "copy": (1e-3 * np.exp(0.01 * np.random.default_rng(1).normal(size=40))).tolist(),
    "sm_clock": [1800.0] * 10,
}
GOOD = Reading(2e-3, 1e-3)
IDLE = Weather(0.05, 1.9)
QUIET_GPU = GpuLook(0, 1800, 2600, frozenset(), 60, 250, 1 << 30)


def judge(before: Reading = GOOD, after: Reading = GOOD, weather: Weather = IDLE, **usual: Sequence[float]) -> Judged:
    return judge_run(before, after, weather, USUAL | usual, LIMITS)


def on_gpu(*, foreign_cpus: float | None = 0.0, idle_cpus: float | None = 8.0, **gpu: Any) -> Weather:
    return Weather(foreign_cpus, idle_cpus, replace(QUIET_GPU, **gpu))


def test_a_quiet_run_is_clean() -> None:
    assert judge() == judge(weather=on_gpu()) == Judged(State.CLEAN)


@pytest.mark.parametrize(
    ("before", "after", "state", "reason"),
    [
        (Reading(2.3e-3, 1e-3), GOOD, State.SUSPECT, "slow sentinel: gemm before +15%"),
        (GOOD, Reading(2e-3, 1.2e-3), State.SUSPECT, "slow sentinel: copy after +20%"),
        (Reading(2.3e-3, 1e-3), Reading(2.3e-3, 1e-3), State.CONTAMINATED, "gemm before +15%, gemm after +15%"),
        (GOOD, Reading(2.6e-3, 1.3e-3), State.CONTAMINATED, "gemm after +30%, copy after +30%"),
        (Reading(), GOOD, State.SUSPECT, "no sentinel: gemm failed before the run"),
        (GOOD, Reading(gemm_s=2e-3), State.SUSPECT, "no sentinel: copy failed after the run"),
    ],
)
def test_slow_and_failed_sentinels(before: Reading, after: Reading, state: State, reason: str) -> None:
    found = judge(before, after)
    assert found.state is state
    assert reason in "; ".join(found.reasons)


def test_a_faster_machine_is_no_reason() -> None:
    assert judge(Reading(1e-3, 5e-4), Reading(1e-3, 5e-4)).state is State.CLEAN


def test_a_noisy_session_needs_more_to_call_a_reading_slow() -> None:
    noisy = (2e-3 * np.exp(0.05 * np.random.default_rng(0).normal(size=100))).tolist()
    slower = Reading(2.16e-3, 1e-3)
    assert judge(slower, slower).state is State.CONTAMINATED
    assert judge(slower, slower, gemm=noisy).state is State.CLEAN


def test_without_anything_to_compare_with_sentinels_say_nothing() -> None:
    assert judge(Reading(9, 9), Reading(9, 9), gemm=(), copy=()).state is State.CLEAN


@pytest.mark.parametrize(
    ("weather", "state", "reason"),
    [
        (Weather(0.1, 1.9), State.CLEAN, ""),
        (Weather(0.3, 1.5), State.SUSPECT, "foreign CPU load: 0.3 cores"),
        (Weather(1.0, 0.0), State.CONTAMINATED, "foreign CPU load: 1.0 cores"),
        (Weather(None, None), State.CLEAN, ""),
        (on_gpu(foreign_cpus=6.0, idle_cpus=2.0), State.CLEAN, ""),
        (on_gpu(foreign_cpus=6.0, idle_cpus=0.4), State.CONTAMINATED, "foreign CPU load: 6.0 cores"),
        (on_gpu(foreign_cpus=0.1, idle_cpus=0.0), State.CLEAN, ""),
        (on_gpu(foreign_processes=2), State.CONTAMINATED, "foreign GPU process: 2"),
        (on_gpu(throttle=frozenset({"power brake"})), State.CONTAMINATED, "throttled GPU: power brake"),
        (on_gpu(throttle=frozenset({"power cap"})), State.CLEAN, ""),
        (on_gpu(sm_clock_mhz=1500), State.SUSPECT, "slow GPU clock: −17%"),
        (on_gpu(sm_clock_mhz=None), State.CLEAN, ""),
        (on_gpu(foreign_processes=None), State.SUSPECT, "silent GPU"),
        (on_gpu(throttle=None), State.SUSPECT, "silent GPU"),
    ],
)
def test_what_telemetry_saw(weather: Weather, state: State, reason: str) -> None:
    found = judge(weather=weather)
    assert found.state is state
    assert len(found.reasons) == (state is not State.CLEAN)
    assert reason in "; ".join(found.reasons)


def test_the_power_cap_excuses_clock_and_gemm_and_nothing_else() -> None:
    cap = frozenset({"power cap"})
    slow = Reading(2.6e-3, 1e-3)
    assert judge(slow, slow, on_gpu(throttle=cap, sm_clock_mhz=1500)) == Judged(State.CLEAN)
    assert judge(slow, slow, on_gpu()).state is State.CONTAMINATED
    assert judge(Reading(2e-3, 1.3e-3), Reading(2e-3, 1.3e-3), on_gpu(throttle=cap)).reasons == (
        "slow sentinel: copy before +30%, copy after +30%",
    )
    both = judge(slow, Reading(copy_s=1e-3), on_gpu(throttle=cap | {"power brake"}, foreign_processes=1))
    assert both.state is State.CONTAMINATED
    assert [reason.partition(":")[0] for reason in both.reasons] == [
        "no sentinel", "foreign GPU process", "throttled GPU",
    ]  # fmt: skip


def test_the_worst_counts_and_every_reason_is_kept() -> None:
    found = judge(Reading(2.3e-3, 1e-3), GOOD, on_gpu(foreign_processes=1, sm_clock_mhz=1500))
    assert found.state is State.CONTAMINATED
    assert [reason.partition(":")[0] for reason in found.reasons] == [
        "slow sentinel", "foreign GPU process", "slow GPU clock",
    ]  # fmt: skip


def test_looks_are_summed_up_by_their_worst() -> None:
    cold = replace(QUIET_GPU, sm_clock_mhz=1700, throttle=frozenset({"power cap"}), foreign_processes=None)
    hot = replace(QUIET_GPU, temperature_c=80, power_w=350, foreign_processes=1, throttle=frozenset({"power brake"}))
    seen = all_looks([cold, hot, QUIET_GPU])
    assert (seen.foreign_processes, seen.sm_clock_mhz, seen.temperature_c) == (1, 1800, 80)
    assert seen.throttle == frozenset({"power cap", "power brake"})
    assert seen.power_w == pytest.approx((250 + 350 + 250) / 3)
    assert all_looks([]) == all_looks([GpuLook()]) == GpuLook()


def a_run(block: int, state: State, *, attempt: int = 1, phase: Phase = "contrast", reasons: str = "") -> Run:
    return Run(
        run=0, phase=phase, block=block, attempt=attempt, arm="treatment", prefill_s=0.1, decode_s=1.0,
        tokens_per_s=64.0, tokens=64, state=state, reasons=reasons, gemm_before=None, gemm_after=None, copy_before=None,
        copy_after=None, foreign_cpus=None, started_s=0.0,
    )  # fmt: skip


LOAD = "foreign CPU load: 1.0 cores"


def session(left: int, suspect: int = 0) -> list[Run]:
    """Twenty blocks of one run; `left` of them stay contaminated, `suspect` others are suspect."""
    runs = [a_run(i, State.CONTAMINATED, attempt=j, reasons=LOAD) for i in range(left) for j in (1, 2)]
    runs += [a_run(i, State.SUSPECT, reasons="slow sentinel: gemm after +9%") for i in range(left, left + suspect)]
    return runs + [a_run(i, State.CLEAN) for i in range(left + suspect, 20)]


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        (session(0), Judged(State.CLEAN)),
        (session(0, suspect=5), Judged(State.CLEAN)),
        (
            session(0, suspect=6),
            Judged(State.SUSPECT, ("6 of 20 runs are suspect (slow sentinel in 6 runs)",)),
        ),
        (
            session(2),
            Judged(State.SUSPECT, ("2 of 20 blocks stayed contaminated (foreign CPU load in 4 runs)",)),
        ),
        (
            session(3),
            Judged(State.CONTAMINATED, ("3 of 20 blocks stayed contaminated (foreign CPU load in 6 runs)",)),
        ),
        ([a_run(0, State.CONTAMINATED, reasons=LOAD), a_run(0, State.CLEAN, attempt=2)], Judged(State.CLEAN)),
        ([], Judged(State.CLEAN)),
    ],
)
def test_the_state_of_a_session(runs: list[Run], expected: Judged) -> None:
    assert judge_runs(runs, LIMITS) == expected


def test_labels_and_speeds_change_nothing() -> None:
    runs = session(3, suspect=6)
    other = [replace(run, arm="control", tokens_per_s=run.tokens_per_s / 3, decode_s=3 * run.decode_s) for run in runs]
    assert judge_runs(other, LIMITS) == judge_runs(runs, LIMITS)
