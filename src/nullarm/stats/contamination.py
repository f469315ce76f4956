"""Contamination that shows in the timings themselves: one arm's runs spread more than the other's.

What disturbs a few runs of one arm makes its spread larger than the other's. An effect of the arm must not: a speed is
multiplied by what affects it, so the test and its ratio look at speeds over their arm's median, and an arm that is sped
up by any factor is seen as before.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, sqrt

import numpy as np
import numpy.typing as npt

from nullarm.errors import InvalidResult
from nullarm.stats.arrays import Floats
from nullarm.stats.paired import TTest
from nullarm.stats.throughput import as_speeds

_ROUNDING = 1e-12  # of deviations of numbers about 1


@dataclass(frozen=True)
class Spread:
    """Run-to-run spread of two arms. Ratios are of the larger to the smaller, infinite where one arm does not vary.

    Attributes:
        variance_ratio: Of variances of tok/s (ddof = 1).
        relative_variance_ratio: The same after division by each arm's median.
        p: Brown–Forsythe on tok/s over each arm's median; None where it is undefined: an arm with fewer than 3 runs, or
            no variation of the deviations, as where rounding leaves two values.
        slowest_mean: Mean tok/s of the slower arm.
    """

    variance_ratio: float
    relative_variance_ratio: float
    p: float | None
    slowest_mean: float

    @property
    def sd_ratio(self) -> float:
        """Ratio of the standard deviations of tok/s; the source calls its 21 a ratio of variances."""
        return sqrt(self.variance_ratio)

    def to_json(self) -> dict[str, float | None]:
        """Plain numbers; an infinite ratio is None."""
        return {
            "variance_ratio": _finite(self.variance_ratio),
            "sd_ratio": _finite(self.sd_ratio),
            "relative_variance_ratio": _finite(self.relative_variance_ratio),
            "p_spread": self.p,
        }


def compare_spread(treated: npt.ArrayLike, control: npt.ArrayLike) -> Spread:
    """Spread of [n] and [m] speeds, tok/s.

    Raises:
        InvalidResult: An arm with fewer than 2 runs, or a speed that is not a finite number above 0.
    """
    first, second = (as_speeds(arm, "runs") for arm in (treated, control))
    if min(len(first), len(second)) < 2:
        raise InvalidResult("spread needs at least 2 runs of each arm", value=(len(first), len(second)))
    relative = first / np.median(first), second / np.median(second)
    return Spread(
        variance_ratio=_ratio(first, second),
        relative_variance_ratio=_ratio(*relative),
        p=_brown_forsythe(*relative),
        slowest_mean=float(min(first.mean(), second.mean())),
    )


def _ratio(first: Floats, second: Floats) -> float:
    # The variance of equal numbers is not exactly 0 in floating point.
    low, high = sorted(0.0 if np.ptp(arm) == 0 else float(arm.var(ddof=1)) for arm in (first, second))
    return high / low if low > 0 else inf if high > 0 else 1.0


def _brown_forsythe(first: Floats, second: Floats) -> float | None:
    """p-value of the pooled t-test on absolute deviations from the median (Brown and Forsythe 1974), two groups."""
    n, m = len(first), len(second)
    if min(n, m) < 3:
        return None
    one, two = (np.abs(arm - np.median(arm)) for arm in (first, second))
    if max(float(np.ptp(one)), float(np.ptp(two))) <= _ROUNDING:
        return None
    pooled = ((n - 1) * float(one.var(ddof=1)) + (m - 1) * float(two.var(ddof=1))) / (n + m - 2)
    difference = float(one.mean() - two.mean())
    return TTest(difference, sqrt(pooled * (1 / n + 1 / m)), n + m - 2, "Brown–Forsythe").p_two_sided


def _finite(value: float) -> float | None:
    return value if value < inf else None
