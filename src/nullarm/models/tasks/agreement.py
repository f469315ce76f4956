"""Correlation of predictions with targets, as GLUE reports it."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt


def matthews(pairs: Sequence[tuple[bool, bool]]) -> float:
    """Matthews correlation of (predicted, wanted); 0 by convention when either is constant."""
    return pearson([(float(a), float(b)) for a, b in pairs])  # for two classes they are the same number


def pearson(pairs: Sequence[tuple[float, float]]) -> float:
    """Pearson's correlation; 0 when either side is constant, for it then orders nothing.

    Raises:
        ValueError: There are no pairs.
    """
    if not pairs:
        raise ValueError("no pairs to correlate")
    n = len(pairs)
    mean_a, mean_b = sum(a for a, _ in pairs) / n, sum(b for _, b in pairs) / n
    spread_a = sqrt(sum((a - mean_a) ** 2 for a, _ in pairs))
    spread_b = sqrt(sum((b - mean_b) ** 2 for _, b in pairs))
    if spread_a == 0 or spread_b == 0:
        return 0.0
    return sum((a - mean_a) * (b - mean_b) for a, b in pairs) / (spread_a * spread_b)
