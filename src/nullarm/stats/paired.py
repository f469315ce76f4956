"""Two arms: exact McNemar, paired t, Welch from scores or published means, Cohen's d. Spread always has ddof = 1."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np
import numpy.typing as npt
from scipy import special
from statsmodels.stats.contingency_tables import mcnemar

from nullarm.errors import InvalidResult
from nullarm.stats.arrays import Floats, as_finite
from nullarm.stats.verdict import Interval


@dataclass(frozen=True)
class Summary:
    """What papers print of one arm: mean, standard deviation (ddof = 1), number of runs."""

    mean: float
    sd: float
    n: int


@dataclass(frozen=True)
class TTest:
    """An estimate with a t reference distribution: everything a t-test, its interval and TOST need.

    Attributes:
        estimate: Treated − control.
        se: Standard error of the estimate, above 0.
        df: Degrees of freedom.
        method: Which t-test, in words.
    """

    estimate: float
    se: float
    df: float
    method: str

    @property
    def statistic(self) -> float:
        """T against a true difference of 0."""
        return self.estimate / self.se

    @property
    def p_two_sided(self) -> float:
        """p-value against a true difference of 0, both directions."""
        return float(2 * special.stdtr(self.df, -abs(self.statistic)))

    def p_above(self, value: float) -> float:
        """p-value of the claim that the true difference is above `value`."""
        return float(special.stdtr(self.df, -(self.estimate - value) / self.se))

    def p_below(self, value: float) -> float:
        """p-value of the claim that the true difference is below `value`."""
        return float(special.stdtr(self.df, (self.estimate - value) / self.se))

    def interval(self, level: float) -> Interval:
        """The two-sided t interval at `level`."""
        half = float(special.stdtrit(self.df, 0.5 + level / 2)) * self.se
        return Interval(self.estimate - half, self.estimate + half, level, f"t interval, {self.method}")


@dataclass(frozen=True)
class McNemar:
    """Exact McNemar test on paired right/wrong items.

    Attributes:
        only_treated: Items only the treated arm got right.
        only_control: Items only the control got right.
        p: Two-sided exact p-value; 1 when no item differs.
    """

    only_treated: int
    only_control: int
    p: float


def paired_t(differences: npt.ArrayLike) -> TTest | None:
    """Paired t-test of [n] differences; None when n < 2 or the differences do not vary at all."""
    difference = as_finite(differences, "n", "differences")
    if len(difference) < 2 or not _varies(difference):
        return None
    se = float(difference.std(ddof=1)) / sqrt(len(difference))
    return TTest(float(difference.mean()), se, len(difference) - 1, "paired")


def welch(treated: npt.ArrayLike, control: npt.ArrayLike) -> TTest | None:
    """Welch's t-test of [n] against [m] unpaired scores; None when an arm has one run or nothing varies."""
    arms = as_finite(treated, "n", "treated"), as_finite(control, "n", "control")
    return None if min(map(len, arms)) < 2 else welch_from_summary(*map(summarise, arms))


def summarise(scores: npt.ArrayLike) -> Summary:
    """Mean and standard deviation of [n] scores; 0 where they do not vary, whatever rounding makes of equal numbers.

    Raises:
        InvalidResult: No score, NaN or infinite scores.
    """
    values = as_finite(scores, "n", "scores")
    if values.size == 0:
        raise InvalidResult("there are no scores to summarise", valid="[n ≥ 1]")
    return Summary(float(values.mean()), float(values.std(ddof=1)) if _varies(values) else 0.0, len(values))


def welch_from_summary(treated: Summary, control: Summary) -> TTest | None:
    """Welch's t-test from two means, standard deviations (ddof = 1) and numbers of runs.

    Returns:
        The test, or None when an arm has fewer than 2 runs or both standard deviations are 0.

    Raises:
        InvalidResult: A negative or non-finite standard deviation, or a non-finite mean.
    """
    for arm in (treated, control):
        if not (np.isfinite(arm.mean) and np.isfinite(arm.sd) and arm.sd >= 0):
            raise InvalidResult("a summary is not a finite mean with a standard deviation ≥ 0", value=arm)
    if min(treated.n, control.n) < 2 or treated.sd == control.sd == 0:
        return None
    first, second = treated.sd**2 / treated.n, control.sd**2 / control.n
    df = (first + second) ** 2 / (first**2 / (treated.n - 1) + second**2 / (control.n - 1))
    return TTest(treated.mean - control.mean, sqrt(first + second), df, "Welch")


def cohens_d(treated: npt.ArrayLike, control: npt.ArrayLike) -> float | None:
    """Difference of means over the pooled standard deviation (ddof = 1); None when it is undefined."""
    first, second = as_finite(treated, "n", "treated"), as_finite(control, "n", "control")
    n, m = len(first), len(second)
    if min(n, m) < 2 or not (_varies(first) or _varies(second)):
        return None
    pooled = ((n - 1) * first.var(ddof=1) + (m - 1) * second.var(ddof=1)) / (n + m - 2)
    return float((first.mean() - second.mean()) / np.sqrt(pooled))


def mcnemar_exact(treated: npt.ArrayLike, control: npt.ArrayLike) -> McNemar:
    """Exact McNemar test of [items] right (1) or wrong (0) under two arms.

    Raises:
        InvalidResult: The arms have different items, or scores other than 0 and 1.
    """
    first, second = as_finite(treated, "items", "treated"), as_finite(control, "items", "control")
    if first.shape != second.shape:
        raise InvalidResult("the arms have different numbers of items", value=(first.size, second.size))
    if not (np.isin(first, (0, 1)).all() and np.isin(second, (0, 1)).all()):
        raise InvalidResult("McNemar's test reads right or wrong only", valid="scores 0 and 1")
    only_treated, only_control = int((first > second).sum()), int((first < second).sum())
    # Only the discordant corners of the table enter the exact test.
    p = float(mcnemar([[0, only_treated], [only_control, 0]], exact=True).pvalue)
    return McNemar(only_treated, only_control, p)


def _varies(values: Floats) -> bool:
    # The spread of equal numbers is not exactly 0 in floating point.
    return float(np.ptp(values)) > 1e-12 * float(np.abs(values).max())
