"""Interval of a proportion, such as an accuracy over items."""

from __future__ import annotations

from statsmodels.stats.proportion import proportion_confint

from nullarm.errors import InvalidResult
from nullarm.stats.verdict import Interval


def wilson(successes: int, n: int, *, level: float = 0.95) -> Interval | None:
    """Wilson score interval of `successes` out of `n`; None when there were no trials.

    Raises:
        InvalidResult: More successes than trials, or a negative count.
    """
    if not 0 <= successes <= n:
        raise InvalidResult("the count of successes is impossible", value=(successes, n), valid="0 ≤ successes ≤ n")
    if n == 0:
        return None
    low, high = proportion_confint(successes, n, alpha=1 - level, method="wilson")
    return Interval(float(low), float(high), level, "Wilson")
