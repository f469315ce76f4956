"""Clean sessions are seldom called anything else, however many runs, rounded or fast; disturbed ones are caught."""

from __future__ import annotations

import numpy as np
import pytest
from simulated_studies import STUDIES, at_most

from nullarm.bench.runs import State
from nullarm.bench.spread import assess
from nullarm.stats.contamination import compare_spread


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
