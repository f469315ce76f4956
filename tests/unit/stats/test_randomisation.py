"""Within-seed randomisation against scipy's permutation test, and what must not change it."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from nullarm.errors import InvalidResult
from nullarm.stats import randomisation
from nullarm.stats.arrays import Floats
from nullarm.stats.randomisation import (
    Randomisation,
    arrangement_count,
    least_attainable_p,
    sign_flip,
    within_seed_randomisation,
)

stats: Any = scipy.stats
scores = st.integers(1, 3).flatmap(
    lambda k: arrays(np.float64, st.tuples(st.integers(1, 4), st.just(k + 1)), elements=st.floats(-10, 10, width=16))
)


def randomised(matrix: Floats, draws: int = 199) -> Randomisation:
    return within_seed_randomisation(matrix[:, 0], matrix[:, 1:], draws=draws, rng=np.random.default_rng(0))


@pytest.mark.parametrize(("seeds", "controls"), [(3, 2), (2, 3), (4, 1)])
def test_exact_p_values_are_those_of_scipy(seeds: int, controls: int) -> None:
    rng = np.random.default_rng(seeds)
    for _ in range(5):
        matrix = rng.normal(size=(seeds, controls + 1))
        ours = randomised(matrix)
        for alternative, p in (("greater", ours.p_greater), ("less", ours.p_less)):
            oracle = stats.permutation_test(
                tuple(matrix.T),
                lambda first, *rest: np.mean(first) - np.mean(rest),
                permutation_type="samples",
                alternative=alternative,
                n_resamples=np.inf,
            )
            assert p == pytest.approx(oracle.pvalue, abs=1e-12)
            assert ours.statistic == pytest.approx(oracle.statistic)


def test_the_best_possible_outcome_has_the_least_attainable_p() -> None:
    best = randomised(np.array([[9.0, 1, 2, 3], [8, 2, 1, 3], [7, 3, 1, 2]]))
    assert best.exact
    assert best.arrangements == arrangement_count(3, 3) == 64
    assert best.p_greater == least_attainable_p(3, 3, draws=999) == 1 / 64
    assert best.p_less == 1.0


def test_ties_count_in_both_tails_in_spite_of_rounding() -> None:
    third = 0.1 + 0.2  # not 0.3 in floating point
    tied = randomised(np.array([[0.3, third, 0.3], [third, 0.3, 0.3]]))
    assert tied.p_greater == tied.p_less == tied.p_two_sided == 1.0


def test_monte_carlo_counts_the_arrangement_that_was_run(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    matrix = rng.normal(size=(5, 3))
    matrix[:, 0] += 1.0
    exact = randomised(matrix)
    monkeypatch.setattr(randomisation, "EXACT_LIMIT", 10)
    drawn = randomised(matrix, draws=20_000)
    assert not drawn.exact
    assert drawn.arrangements == 20_000
    assert drawn.p_greater == pytest.approx(exact.p_greater, abs=0.01)
    assert drawn.p_less == pytest.approx(exact.p_less, abs=0.01)
    assert least_attainable_p(5, 2, draws=99) == 0.01


def test_a_drawn_p_value_is_never_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(randomisation, "EXACT_LIMIT", 10)
    best = np.array([[1.0, 0, 0, 0, 0, 0, 0, 0]] * 6)
    assert randomised(best, draws=99).p_greater == 0.01


def test_many_arrangements_are_drawn_and_the_generator_decides() -> None:
    matrix = np.random.default_rng(2).normal(size=(12, 5))
    first, again = randomised(matrix), randomised(matrix)
    assert not first.exact
    assert first == again
    other = within_seed_randomisation(matrix[:, 0], matrix[:, 1:], draws=199, rng=np.random.default_rng(6))
    assert other != first


@given(scores)
@settings(max_examples=60, deadline=None)
def test_p_values_are_probabilities_and_the_tails_overlap_at_the_outcome(matrix: Floats) -> None:
    result = randomised(matrix)
    assert 0 < result.p_greater <= 1
    assert 0 < result.p_less <= 1
    assert result.p_greater + result.p_less > 1
    assert result.p_greater >= least_attainable_p(len(matrix), matrix.shape[1] - 1, draws=199)


@given(scores, st.floats(-100, 100), st.floats(0.5, 20), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_order_shift_of_a_seed_and_scale_do_not_matter(
    matrix: Floats, shift: float, scale: float, random: Random
) -> None:
    result = randomised(matrix)
    seeds = list(range(len(matrix)))
    random.shuffle(seeds)
    moved = matrix[seeds] * scale
    moved[0] += shift
    moved[:, 1:] = moved[:, :0:-1]
    other = randomised(moved)
    assert other.p_greater == pytest.approx(result.p_greater)
    assert other.p_less == pytest.approx(result.p_less)


def test_turning_the_scores_round_swaps_the_tails() -> None:
    matrix = np.random.default_rng(3).normal(size=(4, 3))
    assert randomised(-matrix).p_less == randomised(matrix).p_greater


def test_sign_flip_is_one_control() -> None:
    rng = np.random.default_rng(4)
    control = rng.normal(size=(8, 1))
    treated = control[:, 0] + rng.normal(size=8)
    flipped = sign_flip(treated - control[:, 0], draws=99, rng=rng)
    assert flipped.p_greater == pytest.approx(
        within_seed_randomisation(treated, control, draws=99, rng=rng).p_greater, abs=1e-12
    )
    oracle = stats.permutation_test(
        (treated - control[:, 0],), np.mean, permutation_type="samples", alternative="greater", n_resamples=np.inf
    )
    assert flipped.p_greater == pytest.approx(oracle.pvalue)


@pytest.mark.parametrize(
    ("treated", "controls", "words"),
    [
        ([1.0, 2.0], [[1.0, 2.0], [1.0]], "the same number for every seed"),
        ([1.0, 2.0], [[1.0, 2.0]], "do not line up"),
        ([1.0], [[]], "do not line up"),
        ([1.0, float("nan")], [[1.0], [2.0]], "treated holds NaN"),
        ([[1.0]], [[1.0]], "wrong number of axes"),
    ],
)
def test_bad_input_is_refused_in_words(treated: list[float], controls: list[list[float]], words: str) -> None:
    with pytest.raises(InvalidResult, match=words):
        within_seed_randomisation(treated, controls, draws=9, rng=np.random.default_rng(0))


def test_nothing_to_flip_is_refused() -> None:
    with pytest.raises(InvalidResult, match="no differences"):
        sign_flip([], draws=9, rng=np.random.default_rng(0))
