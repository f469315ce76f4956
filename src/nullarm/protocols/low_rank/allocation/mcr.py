"""Mix–Compress–Refine: zones of layers by the variance of their hidden states."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from nullarm.errors import InvalidResult

ZONES = ("mix", "compress", "refine")


def zones(variance: Sequence[float], flat_below: float, zone_factor: float) -> list[str] | None:
    """The zone of every layer, by the rule of the source; None where the variances are too flat to tell zones.

    Variances are smoothed by the mean of a layer and its neighbours. Compress grows from the layer of least smoothed
    variance in both directions, for as long as a layer has at most `zone_factor` times the least; Mix is before it,
    Refine behind it.

    The rule finds a dip in the middle of a model. Where the variance of the residual stream grows with depth, as it
    does in most models with pre-norms, the least is at the first layer: there is no Mix, and the first layers get the
    least ranks. Nothing shows that such layers bear it; that is what the control arms are for.

    Args:
        variance: Of each layer's output, over tokens and channels of calibration text.
        flat_below: Ratio of largest to least smoothed variance below which there are no zones.
        zone_factor: Multiple of the least smoothed variance up to which Compress grows.

    Raises:
        InvalidResult: A variance is negative or not a number.
    """
    smooth = _smoothed(np.asarray(variance, dtype=np.float64))
    least, most = smooth.min(), smooth.max()
    if most == least or most < flat_below * least:
        return None
    low = smooth <= zone_factor * least
    first = last = int(smooth.argmin())
    while first > 0 and low[first - 1]:
        first -= 1
    while last < len(low) - 1 and low[last + 1]:
        last += 1
    return ["mix"] * first + ["compress"] * (last - first + 1) + ["refine"] * (len(low) - 1 - last)


def _smoothed(variance: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Three-tap mean; two taps at both ends."""
    if not (len(variance) and np.isfinite(variance).all() and (variance >= 0).all()):
        raise InvalidResult("the variances of the layers are not numbers ≥ 0", value=variance.tolist())
    taps = np.ones(3)
    sums = np.convolve(variance, taps)[1:-1]
    counts = np.convolve(np.ones_like(variance), taps)[1:-1]
    return np.asarray(sums / counts)
