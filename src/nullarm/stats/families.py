"""Adjusted p-values for several contrasts at once: Holm for claims, Benjamini–Hochberg for maps."""

from __future__ import annotations

import numpy.typing as npt
from statsmodels.stats.multitest import multipletests

from nullarm.errors import InvalidResult
from nullarm.stats.arrays import Floats, as_finite


def holm(p_values: npt.ArrayLike) -> Floats:
    """Holm-adjusted p-values (family-wise error), in the order given.

    Raises:
        InvalidResult: A value is not a probability.
    """
    return _adjust(p_values, "holm")


def benjamini_hochberg(p_values: npt.ArrayLike) -> Floats:
    """Benjamini–Hochberg-adjusted p-values (false discovery rate), in the order given.

    Raises:
        InvalidResult: A value is not a probability.
    """
    return _adjust(p_values, "fdr_bh")


def _adjust(p_values: npt.ArrayLike, method: str) -> Floats:
    raw = as_finite(p_values, "contrasts", "p-values")
    if ((raw < 0) | (raw > 1)).any():
        raise InvalidResult("a p-value is not a probability", valid="numbers from 0 to 1")
    if raw.size == 0:
        return raw
    adjusted: Floats = multipletests(raw, method=method)[1]
    return adjusted
