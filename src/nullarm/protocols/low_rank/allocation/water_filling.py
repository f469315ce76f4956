"""What each step of rank is worth where the spectrum of a group is known."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nullarm.errors import InvalidResult
from nullarm.protocols.low_rank.slots import Group


def gains(spectrum: npt.ArrayLike, group: Group, step: int, largest: int) -> npt.NDArray[np.float64]:
    """Squared singular values that each step of rank adds to what is kept, per number that it costs.

    They fall, as singular values do, so one threshold over all groups gives the ranks that lose the least energy in
    sum. That sum is the squared output error on the calibration text for spectra of whitened matrices, and the squared
    error of weights for spectra of weights; errors of different layers are added as they are, which says nothing of
    how much the model's loss minds each.

    Args:
        spectrum: Singular values of the matrix that is truncated, descending; what is beyond them is 0.
        group: The group of that spectrum.
        step: Ranks of a step.
        largest: Largest rank; a remainder that fills no step is left out.

    Returns:
        `[largest // step]`.

    Raises:
        InvalidResult: They rise somewhere, or are no numbers ≥ 0.
    """
    values = np.asarray(spectrum, dtype=np.float64)
    if not (np.isfinite(values).all() and (values >= 0).all() and (np.diff(values) <= 0).all()):
        raise InvalidResult(
            f"the spectrum of layer {group.layer} {'+'.join(group.slots)} is not one",
            valid="singular values ≥ 0, descending",
        )
    energy = np.zeros(largest // step * step)
    known = min(len(values), len(energy))
    energy[:known] = values[:known] ** 2
    return np.asarray(energy.reshape(-1, step).sum(axis=1) / group.factored_numbers(step))
