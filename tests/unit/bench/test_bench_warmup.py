from __future__ import annotations

import numpy as np
import pytest

from nullarm.bench.contamination import Judged
from nullarm.bench.runs import State
from nullarm.bench.warmup import WINDOW, WarmUp, assess, is_flat, warm_up


@pytest.mark.parametrize(
    ("values", "flat"),
    [
        ([1.0] * WINDOW, True),
        ([1.0] * (WINDOW - 1), False),
        ([1.5, 1.4, 1.3, 1.2, 1.1, 1.0], False),
        ([1.0, 1.1, 1.2, 1.3, 1.4, 1.5], False),
        ([1.005, 1.004, 1.003, 1.002, 1.001, 1.0], True),  # sure, and too small to matter
        ([1.0, 1.2, 0.9, 1.1, 0.95, 1.05], True),  # noise
        ([9.0, 5.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0], True),  # only the last ones count
    ],
)
def test_what_is_flat(values: list[float], flat: bool) -> None:
    assert is_flat(values) is flat


def test_noise_alone_is_mostly_flat_and_a_trend_above_it_is_not() -> None:
    rng = np.random.default_rng(0)
    noise = 1 + 0.02 * rng.normal(size=(500, WINDOW))
    assert np.mean([is_flat(row.tolist()) for row in noise]) > 0.85
    assert np.mean([is_flat((row - 0.05 * np.arange(WINDOW)).tolist()) for row in noise]) < 0.05


def test_both_arms_run_in_turn_until_both_are_flat() -> None:
    asked: list[str] = []

    def run(arm: str) -> float:
        asked.append(arm)
        return 1.0 if arm == "control" else 1.0 + 0.5 ** asked.count("treatment")

    found = warm_up(run, ("control", "treatment"), 30)
    runs = len(asked) // 2
    assert WINDOW < runs < 30
    assert asked == ["control", "treatment"] * runs
    assert [found[arm].flat for arm in ("control", "treatment")] == [True, True]
    assert len(found["control"].seconds_per_token) == runs


def test_an_arm_that_never_settles_is_said_to_be_so() -> None:
    times = iter(np.linspace(2, 1, 12).tolist())
    found = warm_up(lambda arm: 1.0 if arm == "control" else next(times), ("control", "treatment"), 12)
    assert found["treatment"].flat is False
    assert found["control"].flat is True
    assert len(found["treatment"].seconds_per_token) == 12


def test_nobody_asks_a_single_run_whether_it_is_flat() -> None:
    assert warm_up(lambda arm: 1.0, ("control",), 1)["control"].flat is None


def test_only_an_arm_that_was_asked_and_never_got_flat_is_a_reason() -> None:
    flat, never, unasked = WarmUp((1.0,) * 7, True), WarmUp((1.0,) * 7, False), WarmUp((1.0,), None)
    assert assess([flat, flat]) == assess([unasked, unasked]) == assess([]) == Judged(State.CLEAN)
    assert assess([flat, never]) == assess([never, flat]) == assess([never, never])
    assert assess([flat, never]) == Judged(State.SUSPECT, ("warm-up: never got flat in 7 runs",))
