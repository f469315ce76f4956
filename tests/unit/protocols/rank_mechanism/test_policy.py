from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nullarm.errors import StudyError
from nullarm.protocols.rank_mechanism.policy import AllocationPolicy, Rounding, quantile_arm


@pytest.mark.parametrize(
    ("rounding", "expected"),
    [
        ("up", {0: 1, 1: 1, 2: 2, 3: 4, 5: 8, 6: 8, 7: 8, 33: 64, 64: 64, 70: 64}),
        ("nearest", {0: 1, 1: 1, 2: 2, 3: 4, 5: 4, 6: 8, 7: 8, 33: 32, 64: 64, 70: 64}),
        ("down", {0: 1, 1: 1, 2: 2, 3: 2, 5: 4, 6: 4, 7: 4, 33: 32, 64: 64, 70: 64}),
    ],
)
def test_rungs(rounding: Rounding, expected: dict[int, int]) -> None:
    policy = AllocationPolicy(rounding=rounding)
    assert {wanted: policy.rung(wanted, cap=64) for wanted in expected} == expected


def test_the_probes_rank_caps() -> None:
    assert AllocationPolicy().rung(30, cap=16) == 16
    assert AllocationPolicy().rung(5, cap=6) == 4, "never off the ladder"


def test_min_rank_holds_for_a_zero_update() -> None:
    policy = AllocationPolicy(min_rank=3)
    assert policy.wanted([0.0, 0.0]) == 0
    assert policy.rung(0, cap=64) == 4


def test_margin_and_energy() -> None:
    spectrum = [1.0] * 10
    assert AllocationPolicy().wanted(spectrum) == 9
    assert AllocationPolicy(energy=1.0).wanted(spectrum) == 10
    assert AllocationPolicy(margin=1.5).wanted(spectrum) == 13.5


def test_rounding_errors_of_the_margin_do_not_cost_a_rung() -> None:
    policy = AllocationPolicy(energy=1.0, margin=1.1, allowed_ranks=(55, 56))
    assert policy.wanted([1.0] * 50) > 55, "50 · 1.1 in doubles"
    assert policy.rung(policy.wanted([1.0] * 50), cap=64) == 55


@given(
    wanted=st.floats(0, 100),
    cap=st.integers(1, 100),
    ladder=st.sets(st.integers(1, 100), min_size=1),
    rounding=st.sampled_from(["up", "nearest", "down"]),
)
def test_a_rung_is_always_on_the_ladder_and_below_the_cap(
    wanted: float, cap: int, ladder: set[int], rounding: Rounding
) -> None:
    policy = AllocationPolicy(allowed_ranks=tuple(sorted(ladder)), rounding=rounding)
    if min(ladder) > cap:
        with pytest.raises(StudyError, match="no allowed rank lies between"):
            policy.rung(wanted, cap)
    else:
        rank = policy.rung(wanted, cap)
        assert rank in ladder
        assert rank <= cap
        usable = [r for r in ladder if r <= cap]
        if rounding == "up":
            assert rank >= min(wanted, max(usable)) * (1 - 1e-8)
        if rounding == "down":
            assert rank <= max(wanted, min(usable)) * (1 + 1e-8)
        if rounding == "nearest":
            assert abs(rank - wanted) <= min(abs(r - wanted) for r in usable) + 1e-6


@pytest.mark.parametrize(
    ("knob", "words"),
    [
        ({"energy": 0.0}, "allocation.energy"),
        ({"energy": 1.1}, "allocation.energy"),
        ({"margin": 0.0}, "allocation.margin"),
        ({"margin": float("nan")}, "allocation.margin"),
        ({"uniform_quantiles": ()}, "allocation.uniform_quantiles"),
        ({"uniform_quantiles": (0.5, 0.5)}, "allocation.uniform_quantiles"),
        ({"uniform_quantiles": (1.5,)}, "allocation.uniform_quantiles"),
        ({"min_rank": 0}, "allocation.min_rank"),
        ({"allowed_ranks": ()}, "allocation.allowed_ranks"),
        ({"allowed_ranks": (0, 1)}, "allocation.allowed_ranks"),
        ({"allowed_ranks": (2, 1)}, "allocation.allowed_ranks"),
        ({"allowed_ranks": (1, 1)}, "allocation.allowed_ranks"),
        ({"rounding": "sideways"}, "up, nearest, down"),
    ],
)
def test_impossible_knobs_are_refused(knob: dict[str, Any], words: str) -> None:
    with pytest.raises(StudyError) as refused:
        AllocationPolicy(**knob)
    assert words in str(refused.value)
    assert refused.value.valid


def test_names_of_uniform_arms() -> None:
    assert [quantile_arm(q) for q in (0.5, 0.9, 0.975, 1.0)] == [
        "uniform_median",
        "uniform_p90",
        "uniform_p97.5",
        "uniform_p100",
    ]
