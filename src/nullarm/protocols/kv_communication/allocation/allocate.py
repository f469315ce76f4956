"""How many bits each stream gets: the least summed divergence that fits into the bytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import Bounds, LinearConstraint, milp

from nullarm.errors import InvalidResult, StudyError
from nullarm.protocols.kv_communication.geometry import Stream

WHOLE = 1e6
"""What the budget, and the largest summed KL, are scaled to: the solver's tolerances are 1e-6, whatever the units."""
TOLERANCE = 1e-6
"""Of a sum scaled so, to leave room for rounding."""


class Choice(NamedTuple):
    """A stream at one width.

    Attributes:
        kl: What it costs, nats.
        size: What it takes, bytes a token.
    """

    kl: float
    size: float


Choices = Mapping[Stream, Mapping[int, Choice]]
"""Of every stream, each width's choice."""


def allocate(rows: Iterable[Mapping[str, Any]], bits: Sequence[int], mean_bits: float) -> dict[Stream, int]:
    """Width of every stream, ascending by layer, that minimises the summed KL under the budget.

    The streams' divergences are taken to add up. The budget is the bytes a token that the codec takes with all streams
    at `mean_bits`; in between two of `bits` it is linear, above the widest it is the widest's.

    Args:
        rows: Of the table SENSITIVITY, of one codec.
        bits: Widths to choose from.
        mean_bits: The budget.

    Raises:
        StudyError: Not even the narrowest widths fit.
        InvalidResult: A row is missing or there twice, or a divergence is negative or not a number.
    """
    choices = _choices(rows, sorted(set(bits)))
    if mean_bits < min(bits):
        raise StudyError(
            "an allocation's mean_bits is less than its narrowest width", value=mean_bits, valid=f"at least {min(bits)}"
        )
    return knapsack(choices, budget_bytes(choices, mean_bits))


def budget_bytes(choices: Choices, mean_bits: float) -> float:
    """Bytes a token of all streams at this many bits, linear between two widths."""
    return sum(
        float(np.interp(mean_bits, sorted(by_width), [by_width[width].size for width in sorted(by_width)]))
        for by_width in choices.values()
    )


def knapsack(choices: Choices, budget: float) -> dict[Stream, int]:
    """One width for every stream: the least summed KL within the budget, and of these the fewest bytes.

    A multiple-choice knapsack, solved by branch and cut (HiGHS): for the KL, then for the bytes at that KL.

    Raises:
        StudyError: Not even the smallest choices fit.
        InvalidResult: The solver gave up.
    """
    least = sum(min(choice.size for choice in by_width.values()) for by_width in choices.values())
    if least > budget * (1 + TOLERANCE / WHOLE):
        raise StudyError("no widths fit the budget, bytes a token", value=budget, valid=f"at least {least:.6g}")
    places = [(stream, width) for stream in sorted(choices) for width in sorted(choices[stream])]
    one_each = np.array([[stream == of for of, _ in places] for stream in sorted(choices)], dtype=float)
    listed = [choices[stream][width] for stream, width in places]
    kl = np.array([choice.kl for choice in listed]) * (WHOLE / _most_kl(choices))
    size = np.array([choice.size for choice in listed]) * (WHOLE / budget)
    fits = LinearConstraint(size, ub=WHOLE + TOLERANCE)
    best = _minimise(kl, [LinearConstraint(one_each, 1, 1), fits])
    as_good = LinearConstraint(kl, ub=kl @ best + TOLERANCE)
    chosen = _minimise(size, [LinearConstraint(one_each, 1, 1), fits, as_good])
    return {stream: width for (stream, width), taken in zip(places, chosen, strict=True) if taken}


def _most_kl(choices: Choices) -> float:
    return sum(max(choice.kl for choice in by_width.values()) for by_width in choices.values()) or 1.0


def _minimise(costs: npt.NDArray[np.float64], constraints: list[LinearConstraint]) -> npt.NDArray[np.float64]:
    """Zeros and ones of least cost."""
    result = milp(
        costs,
        integrality=np.ones_like(costs, dtype=np.int64),
        bounds=Bounds(0, 1),
        constraints=constraints,
        options={"mip_rel_gap": 0.0},
    )
    if not result.success:
        raise InvalidResult(f"the allocation of bits was not solved: {result.message}")
    return np.rint(result.x)


def _choices(rows: Iterable[Mapping[str, Any]], bits: Sequence[int]) -> Choices:
    """The rows by stream and width, checked."""
    found: dict[Stream, dict[int, Choice]] = {}
    for row in rows:
        stream, width = Stream(row["layer"], row["half"]), row["bits"]
        by_width = found.setdefault(stream, {})
        if width in by_width:
            raise InvalidResult(f"{_name(stream)} has two sensitivities at one width", value=width)
        by_width[width] = Choice(_checked_kl(row["kl"], stream, width), row["bytes_per_token"])
    for stream, by_width in found.items():
        if missing := sorted(set(bits) - set(by_width)):
            raise InvalidResult(f"{_name(stream)} has no sensitivity at a width", value=missing, valid=sorted(by_width))
    if not found:
        raise InvalidResult("bits cannot be allocated: no stream has a sensitivity")
    return {stream: {width: by_width[width] for width in bits} for stream, by_width in found.items()}


def _checked_kl(kl: float, stream: Stream, width: int) -> float:
    if not (isfinite(kl) and kl >= 0):
        raise InvalidResult(
            f"the sensitivity of {_name(stream)} at {width} bits is no divergence", value=kl, valid=">= 0"
        )
    return kl


def _name(stream: Stream) -> str:
    return f"layer {stream.layer} {stream.half}"
