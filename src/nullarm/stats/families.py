"""Adjusted p-values for several contrasts at once: Holm for claims, Benjamini–Hochberg for maps.

Written out rather than taken from `statsmodels.stats.multitest`, whose every call runs a full garbage collection (0.2 s
once torch is loaded); it is the oracle in the tests.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nullarm.errors import InvalidResult
from nullarm.stats.arrays import Floats, as_finite


def holm(p_values: npt.ArrayLike) -> Floats:
    """Holm-adjusted p-values (family-wise error; Holm 1979), in the order given.

    Raises:
        InvalidResult: A value is not a probability.
    """
    raw = _probabilities(p_values)
    order = np.argsort(raw, kind="stable")
    stepped = np.maximum.accumulate(raw[order] * np.arange(raw.size, 0, -1))
    return _in_order(stepped, order)


def benjamini_hochberg(p_values: npt.ArrayLike) -> Floats:
    """Benjamini–Hochberg-adjusted p-values (false discovery rate; 1995), in the order given.

    Raises:
        InvalidResult: A value is not a probability.
    """
    raw = _probabilities(p_values)
    order = np.argsort(raw, kind="stable")[::-1]
    stepped = np.minimum.accumulate(raw[order] * raw.size / np.arange(raw.size, 0, -1))
    return _in_order(stepped, order)


def _probabilities(p_values: npt.ArrayLike) -> Floats:
    raw = as_finite(p_values, "contrasts", "p-values")
    if ((raw < 0) | (raw > 1)).any():
        raise InvalidResult("a p-value is not a probability", valid="numbers from 0 to 1")
    return raw


def _in_order(stepped: Floats, order: npt.NDArray[np.intp]) -> Floats:
    adjusted: Floats = np.empty_like(stepped)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted
