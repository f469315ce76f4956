"""Two-arm tests, TOST and non-inferiority against scipy and statsmodels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.stats
from statsmodels.stats import weightstats
from statsmodels.stats.contingency_tables import mcnemar

from nullarm.errors import InvalidResult
from nullarm.stats.equivalence import non_inferiority, tost, tost_paired, tost_welch
from nullarm.stats.paired import (
    Summary,
    cohens_d,
    mcnemar_exact,
    paired_t,
    welch,
    welch_from_summary,
)

rng = np.random.default_rng(0)
FIRST = rng.normal(0.3, 1.0, size=9)
SECOND = rng.normal(0.0, 2.0, size=9)
THIRD = rng.normal(0.0, 2.0, size=14)
stats: Any = scipy.stats


def test_paired_t_is_scipys() -> None:
    ours, oracle = paired_t(FIRST - SECOND), stats.ttest_rel(FIRST, SECOND)
    assert ours is not None
    assert ours.statistic == pytest.approx(oracle.statistic)
    assert ours.p_two_sided == pytest.approx(oracle.pvalue)
    assert ours.p_above(0) == pytest.approx(stats.ttest_rel(FIRST, SECOND, alternative="greater").pvalue)
    assert ours.p_below(0) == pytest.approx(stats.ttest_rel(FIRST, SECOND, alternative="less").pvalue)
    interval = ours.interval(0.95)
    assert (interval.low, interval.high) == pytest.approx(tuple(oracle.confidence_interval()))


def test_welch_is_scipys_from_scores_and_from_summaries() -> None:
    ours, oracle = welch(FIRST, THIRD), stats.ttest_ind(FIRST, THIRD, equal_var=False)
    assert ours is not None
    assert (ours.statistic, ours.df) == pytest.approx((oracle.statistic, oracle.df))
    assert ours.p_two_sided == pytest.approx(oracle.pvalue)
    summaries = [Summary(float(a.mean()), float(a.std(ddof=1)), len(a)) for a in (FIRST, THIRD)]
    assert welch_from_summary(*summaries) == ours


def test_the_runbooks_example_is_t_1_80_and_p_0_157() -> None:
    test = welch_from_summary(Summary(0.675, 0.008, 3), Summary(0.660, 0.012, 3))
    assert test is not None
    assert round(test.statistic, 2) == 1.80
    assert round(test.p_two_sided, 3) == 0.157


@pytest.mark.parametrize("margin", [0.4, 2.0])
def test_tost_is_that_of_statsmodels(margin: float) -> None:
    paired, unpaired = tost_paired(FIRST - SECOND, margin), tost_welch(FIRST, THIRD, margin)
    assert paired is not None
    assert unpaired is not None
    p, lower, upper = weightstats.ttost_paired(FIRST, SECOND, -margin, margin)
    assert (paired.p, paired.p_lower, paired.p_upper) == pytest.approx((p, lower[1], upper[1]))
    p, lower, upper = weightstats.ttost_ind(FIRST, THIRD, -margin, margin, usevar="unequal")
    assert (unpaired.p, unpaired.p_lower, unpaired.p_upper) == pytest.approx((p, lower[1], upper[1]))


def test_non_inferiority_is_a_shifted_one_sided_t() -> None:
    test = paired_t(FIRST - SECOND)
    assert test is not None
    oracle = stats.ttest_1samp(FIRST - SECOND, -0.5, alternative="greater").pvalue
    assert non_inferiority(test, 0.5) == pytest.approx(oracle)
    assert non_inferiority(test, 0.5) == tost(test, 0.5).p_lower


@pytest.mark.parametrize("margin", [0.0, -1.0, float("nan"), float("inf")])
def test_a_margin_must_be_above_zero(margin: float) -> None:
    with pytest.raises(InvalidResult, match="margin is not above 0"):
        tost_paired(FIRST, margin)


def test_undefined_tests_are_none_and_not_nan() -> None:
    assert paired_t([0.4]) is None
    assert paired_t([0.1 + 0.2, 0.3, 0.3]) is None
    assert welch([1.0, 1.0], [2.0, 2.0]) is None
    assert welch([1.0], [2.0, 3.0]) is None
    assert welch_from_summary(Summary(1, 0.0, 3), Summary(0, 0.0, 3)) is None
    assert tost_paired([0.5], 1.0) is None
    assert tost_welch([0.5], [1.0], 1.0) is None
    assert cohens_d([1.0], [2.0, 3.0]) is None


def test_summaries_must_be_possible() -> None:
    with pytest.raises(InvalidResult, match="standard deviation ≥ 0"):
        welch_from_summary(Summary(1, -0.1, 3), Summary(0, 0.1, 3))
    with pytest.raises(InvalidResult, match="finite mean"):
        welch_from_summary(Summary(float("nan"), 0.1, 3), Summary(0, 0.1, 3))


def test_cohens_d_pools_with_ddof_one() -> None:
    assert cohens_d([1.0, 3.0], [0.0, 2.0]) == pytest.approx(1 / np.sqrt(2))
    t = stats.ttest_ind(FIRST, THIRD).statistic
    assert cohens_d(FIRST, THIRD) == pytest.approx(t * np.sqrt(1 / len(FIRST) + 1 / len(THIRD)))


def test_mcnemar_is_that_of_statsmodels() -> None:
    first, second = (rng.random((2, 60)) < 0.6).astype(int)
    ours = mcnemar_exact(first, second)
    table = [[np.sum(first & second), ours.only_treated], [ours.only_control, np.sum((1 - first) & (1 - second))]]
    assert np.sum(table) == 60
    assert ours.p == pytest.approx(mcnemar(table, exact=True).pvalue)
    assert mcnemar_exact([1, 0], [1, 0]).p == 1.0


def test_mcnemar_refuses_what_it_cannot_read() -> None:
    with pytest.raises(InvalidResult, match="different numbers of items"):
        mcnemar_exact([1, 0], [1])
    with pytest.raises(InvalidResult, match="right or wrong only"):
        mcnemar_exact([1, 0.5], [1, 0])
