"""Checked entry of arrays: the one place where lists become float64 arrays of a known rank."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from nullarm.errors import InvalidResult

Floats: TypeAlias = npt.NDArray[np.float64]
Ints: TypeAlias = npt.NDArray[np.int64]


def as_array(values: npt.ArrayLike, shape: str, name: str, *, leave_out: str = "") -> Floats:
    """`values` as a float64 array with the axes that `shape` names.

    Args:
        values: Anything numpy can read as a rectangular array.
        shape: Names of the axes, such as `"seeds, items"`.
        name: What the array is, for the error.
        leave_out: An axis that may be missing; it is then put back with length 1.

    Raises:
        InvalidResult: The values are ragged, not numbers, or have another number of axes.
    """
    axes = shape.split(", ")
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidResult(f"{name}: ragged or not numeric", valid=f"a rectangular array [{shape}]") from error
    if leave_out and array.ndim == len(axes) - 1:
        array = np.expand_dims(array, axes.index(leave_out))
    if array.ndim != len(axes):
        raise InvalidResult(f"{name}: the wrong number of axes", value=array.shape, valid=f"[{shape}]")
    return array


def as_finite(values: npt.ArrayLike, shape: str, name: str) -> Floats:
    """As `as_array`, and every value is a finite number.

    Raises:
        InvalidResult: Also when a value is NaN or infinite.
    """
    array = as_array(values, shape, name)
    if not np.isfinite(array).all():
        raise InvalidResult(f"{name} holds NaN or infinite values", valid="finite numbers")
    return array
