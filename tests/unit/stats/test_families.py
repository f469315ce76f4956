"""Holm, Benjamini–Hochberg, Wilson and the few-runs aggregates, by hand and against other libraries."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.multitest import multipletests

from nullarm.errors import InvalidResult
from nullarm.stats.families import benjamini_hochberg, holm
from nullarm.stats.few_runs import interquartile_mean, probability_of_improvement
from nullarm.stats.proportions import wilson

stats: Any = scipy.stats


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]).tolist() == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]).tolist() == []


@pytest.mark.parametrize("seed", range(5))
def test_adjusted_p_values_are_those_of_statsmodels(seed: int) -> None:
    p = np.round(np.random.default_rng(seed).random(12) ** 2, 1)  # rounded, so that there are ties
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1])
    assert benjamini_hochberg(p) == pytest.approx(multipletests(p, method="fdr_bh")[1])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
@settings(max_examples=50, deadline=None)
def test_holm_lies_between_the_raw_p_and_bonferroni(p: list[float]) -> None:
    adjusted = holm(p)
    assert (adjusted >= np.array(p) - 1e-12).all()
    assert adjusted.min() == pytest.approx(min(1.0, len(p) * min(p)))
    assert adjusted.max() <= min(1.0, len(p) * max(p)) + 1e-12


@pytest.mark.parametrize("p", [[0.5, 1.1], [-0.1]])
def test_p_values_must_be_probabilities(p: list[float]) -> None:
    with pytest.raises(InvalidResult, match="not a probability"):
        holm(p)


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (7, 10), (1500, 1500)])
def test_wilson_is_scipys(successes: int, n: int) -> None:
    ours = wilson(successes, n, level=0.9)
    oracle = stats.binomtest(successes, n).proportion_ci(0.9, method="wilson")
    assert ours is not None
    assert (ours.low, ours.high) == pytest.approx((oracle.low, oracle.high), abs=1e-12)
    assert (ours.level, ours.method) == (0.9, "Wilson")


def test_no_trials_are_no_evidence_and_impossible_counts_are_refused() -> None:
    assert wilson(0, 0) is None
    with pytest.raises(InvalidResult, match="impossible"):
        wilson(3, 2)


def test_the_interquartile_mean_drops_a_quarter_on_each_side() -> None:
    assert interquartile_mean([[-100.0, 1.0], [2.0, 3.0], [4.0, 5.0], [6.0, 1e9]]) == 3.5
    with pytest.raises(InvalidResult, match="no scores"):
        interquartile_mean(np.empty((0, 2)))


def test_probability_of_improvement_is_mann_whitneys() -> None:
    rng = np.random.default_rng(1)
    treated, control = rng.integers(0, 5, (6, 2)).astype(float), rng.integers(0, 5, (4, 2)).astype(float)
    u = [stats.mannwhitneyu(treated[:, task], control[:, task]).statistic / 24 for task in range(2)]
    assert probability_of_improvement(treated, control) == pytest.approx(np.mean(u))
    assert probability_of_improvement([[1.0]], [[1.0]]) == 0.5
    with pytest.raises(InvalidResult, match="different tasks"):
        probability_of_improvement([[1.0, 2.0]], [[1.0]])
