"""A budget in, one rank for every group out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from nullarm.errors import InvalidResult, StudyError
from nullarm.protocols.low_rank.allocation.exchange import exchanged
from nullarm.protocols.low_rank.allocation.mcr import ZONES, zones
from nullarm.protocols.low_rank.allocation.settings import Allocation
from nullarm.protocols.low_rank.allocation.spend import spend
from nullarm.protocols.low_rank.allocation.water_filling import gains
from nullarm.protocols.low_rank.slots import Group

Spectra = Mapping[tuple[int, tuple[str, ...]], npt.ArrayLike]
"""Singular values, descending, by layer and slots."""


def allocate(
    settings: Allocation,
    groups: Sequence[Group],
    budget_numbers: int,
    *,
    variance: Sequence[float] | None = None,
    spectra: Spectra | None = None,
    rng: np.random.Generator,
) -> list[int]:
    """A rank for every group, so that all factors together have at most so many numbers.

    What is left of the budget is less than one more step of rank in any group costs that could still have one. For
    `uniform` such a step is one in all groups of a shape, which have the same rank. So an arm that is to be compared
    at equal bytes had better take `same_bytes_as` the uniform one.

    In `mcr`, ranks are proportional to the scales of the zones, clipped to what a group can have, and the common factor
    is the one that spends the budget. (The source clips after normalising, and so changes the bytes it compares at.)
    Where the variances are flat, it gives the ranks of `uniform`.

    `random` is `mcr` with its layers in another order, at the same bytes. Where `mcr` is flat, or has no two layers
    that can change places and differ, there is no other order: the ranks are those of `mcr`, and the hash of the
    treated model will show that the two arms are one (NO_OP).

    Args:
        settings: How.
        groups: The groups, layer by layer.
        budget_numbers: What their factors may have together.
        variance: Of the output of every layer of the model, for `mcr` and `random`.
        spectra: For `water_filling`.
        rng: Source of the order, for `random`.

    Returns:
        Ranks ≥ 1 in the order of `groups`.

    Raises:
        StudyError: The budget does not pay for the least ranks, or a group is narrower than `multiple_of`.
        InvalidResult: A variance or a spectrum is missing, or is none.
    """
    if settings.kind == "water_filling":
        return _bought(settings, groups, budget_numbers, [_gains(settings, group, spectra) for group in groups])
    scales = None if settings.kind == "uniform" else _scales(settings, groups, variance)
    worths = [_shares(settings, group, 1.0 if scales is None else scales[group.layer]) for group in groups]
    ranks = _bought(settings, groups, budget_numbers, worths, alike=scales is None)
    return exchanged(groups, ranks, rng) if settings.kind == "random" else ranks


def _bought(
    settings: Allocation,
    groups: Sequence[Group],
    budget: int,
    worths: Sequence[npt.NDArray[np.float64]],
    *,
    alike: bool = False,
) -> list[int]:
    """Ranks for the budget: one step each, then the steps of most worth; groups of a shape together where `alike`."""
    buyers: dict[Hashable, list[int]] = defaultdict(list)
    for index, group in enumerate(groups):
        buyers[(group.in_features, group.out_features) if alike else index].append(index)
    costs = [sum(groups[i].factored_numbers(settings.multiple_of) for i in members) for members in buyers.values()]
    if sum(costs) > budget:
        raise StudyError(
            f"the budget does not pay for rank {settings.multiple_of} everywhere, in numbers",
            value=budget, valid=f"at least {sum(costs)}", next_command="raise `budget`",
        )  # fmt: skip
    further = spend([worths[members[0]][1:] for members in buyers.values()], costs, budget - sum(costs))
    ranks = {i: (1 + steps) * settings.multiple_of for members, steps in zip(buyers.values(), further, strict=True)
             for i in members}  # fmt: skip
    return [ranks[i] for i in range(len(groups))]


def _largest(settings: Allocation, group: Group) -> int:
    largest = min(group.max_rank, settings.cap or group.max_rank)
    if largest < settings.multiple_of:
        raise StudyError(
            f"layer {group.layer} {'+'.join(group.slots)} has at most rank {largest}, less than allocation.multiple_of",
            value=settings.multiple_of, valid=f"1 to {largest}",
        )  # fmt: skip
    return largest


def _shares(settings: Allocation, group: Group, scale: float) -> npt.NDArray[np.float64]:
    """Worth of each step where rank is to be proportional to the scale: 1 / the common factor that the step needs."""
    steps = np.arange(1, _largest(settings, group) // settings.multiple_of + 1)
    base = group.dense_numbers / group.factored_numbers(1) if settings.equal == "keep" else 1.0
    return np.asarray(scale * base / steps)


def _gains(settings: Allocation, group: Group, spectra: Spectra | None) -> npt.NDArray[np.float64]:
    if spectra is None or (group.layer, group.slots) not in spectra:
        raise InvalidResult(f"water filling has no spectrum of layer {group.layer} {'+'.join(group.slots)}")
    return gains(spectra[group.layer, group.slots], group, settings.multiple_of, _largest(settings, group))


def _scales(settings: Allocation, groups: Sequence[Group], variance: Sequence[float] | None) -> list[float] | None:
    """The scale of every layer; None where there are no zones."""
    layers = 1 + max(group.layer for group in groups)
    if variance is None or len(variance) < layers:
        raise InvalidResult(
            f"allocation {settings.kind!r} needs the variance of every layer",
            value=None if variance is None else len(variance), valid=f"at least {layers} of them",
        )  # fmt: skip
    by_zone = dict(zip(ZONES, settings.scales, strict=True))
    found = zones(variance, settings.flat_below, settings.zone_factor)
    return None if found is None else [by_zone[zone] for zone in found]
