"""Speeds as log ratios over blocks; drift against statsmodels."""

from __future__ import annotations

import numpy as np
import pytest
import statsmodels.api as sm

from nullarm.errors import InvalidResult
from nullarm.stats.judge import judge_difference
from nullarm.stats.throughput import as_ratio, block_scores, drift
from nullarm.stats.verdict import Interval, Verdict

ABBA = np.array([1, 0, 0, 1] * 8)
SECONDS = 3.0 * np.arange(len(ABBA)) + 100


def speeds(effect: float, slope: float, sd: float = 0.01, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    logs = 3 + effect * ABBA + slope * SECONDS + sd * rng.normal(size=len(ABBA))
    result: np.ndarray = np.exp(logs)
    return result


def test_abba_blocks_cancel_a_drift() -> None:
    timed = speeds(np.log(0.9), slope=-0.003, sd=0.001).reshape(-1, 4)
    scores = block_scores(timed[:, [0, 3]]), block_scores(timed[:, [1, 2]])
    judged = judge_difference("A − B", *scores, alpha=0.05, margin=0.01, rng=np.random.default_rng(0), unit="blocks")
    assert judged.verdict is Verdict.DIFFERENT
    assert judged.interval is not None
    ratio = as_ratio(judged.interval)
    assert ratio.low < 0.9 < ratio.high
    assert ratio.high - ratio.low < 0.005
    assert (ratio.level, ratio.method) == (judged.interval.level, judged.interval.method)


def test_a_ratio_is_the_exponential_of_both_ends() -> None:
    ratio = as_ratio(Interval(np.log(0.5), np.log(4.0), 0.9, "by hand"))
    assert (ratio.low, ratio.high) == pytest.approx((0.5, 4.0))


def test_drift_is_that_of_least_squares() -> None:
    timed = speeds(0.05, slope=-0.0004)
    found = drift(timed, ABBA, SECONDS)
    oracle = sm.OLS(np.log(timed), np.column_stack([np.ones(len(ABBA)), ABBA, SECONDS])).fit()
    assert found is not None
    for test, place in ((found.log_ratio, 1), (found.per_second, 2)):
        assert test.estimate == pytest.approx(oracle.params[place])
        assert test.se == pytest.approx(oracle.bse[place])
        assert test.p_two_sided == pytest.approx(oracle.pvalues[place])
        assert test.df == oracle.df_resid
    assert found.to_json()["per_minute"] == pytest.approx(60 * oracle.params[2])
    assert found.to_json()["p_log_ratio"] == pytest.approx(oracle.pvalues[1])


@pytest.mark.parametrize(
    ("arm", "seconds", "logs"),
    [
        ([0, 1, 0], [0, 1, 2], [1, 2, 3]),  # as many runs as coefficients
        ([1, 1, 1, 1], [0, 1, 2, 3], [1, 2, 1, 2]),  # one arm
        ([0, 0, 1, 1], [5, 5, 9, 9], [1, 2, 1, 2]),  # an arm is a time
        ([0, 1, 0, 1], [4, 4, 4, 4], [1, 2, 1, 2]),  # no time passes
        ([0, 1, 1, 0], [0, 1, 2, 3], [1, 2, 2, 1]),  # nothing is left over
        ([], [], []),
    ],
)
def test_drift_is_none_where_it_is_undefined(arm: list[int], seconds: list[float], logs: list[float]) -> None:
    assert drift(np.exp(np.array(logs, dtype=float)), arm, seconds) is None


def test_speeds_that_are_none_are_refused() -> None:
    with pytest.raises(InvalidResult, match=r"a speed is not above 0; got 0\.0"):
        block_scores([[1.0, 0.0]])
    with pytest.raises(InvalidResult, match="NaN or infinite"):
        block_scores([[1.0, np.nan]])
    with pytest.raises(InvalidResult, match="ragged"):
        block_scores([[1.0, 2.0], [1.0]])
    with pytest.raises(InvalidResult, match="the blocks hold no runs"):
        block_scores(np.ones((3, 0)))
    with pytest.raises(InvalidResult, match="do not line up"):
        drift([1.0, 2.0], [1], [0.0, 1.0])
