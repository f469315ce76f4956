"""How many numbers factors may have, and how ranks are dealt out. No torch: a plan reads it."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Annotated, Literal

from pydantic import Field, model_validator

from nullarm.errors import StudyError
from nullarm.protocols.low_rank.slots import Group
from nullarm.study.spec import Name, Strict

Positive = Annotated[float, Field(gt=0)]

KNOBS = {
    "uniform": {"equal"},
    "mcr": {"equal", "flat_below", "zone_factor", "scales"},
    "random": {"equal", "flat_below", "zone_factor", "scales"},
    "water_filling": set[str](),
}
"""Settings that each kind reads, beside `multiple_of` and `cap`."""


class Allocation(Strict):
    """How ranks are dealt out over the groups of matrices that share a basis."""

    kind: Literal["uniform", "mcr", "water_filling", "random"] = "uniform"
    """`uniform`; `mcr`: the source's Mix–Compress–Refine; `water_filling`: the largest singular values of all groups;
    `random`: the layers of `mcr` in another order, its placebo."""
    equal: Literal["rank", "keep"] = "rank"
    """What groups of unlike shape have in common before a layer's scale: the rank, as in the source, or the share of
    their dense numbers that is kept, as SVD-LLM has it."""
    multiple_of: int = Field(default=1, ge=1)
    """Ranks are multiples of it (the source: 32)."""
    cap: int | None = Field(default=None, ge=1)
    """Largest rank (the source: 1536); that of the matrices when left out."""
    flat_below: float = Field(default=1.15, ge=1)
    """Below this ratio of the largest to the smallest smoothed variance there are no zones, and `mcr` is uniform."""
    zone_factor: float = Field(default=1.5, ge=1)
    """The Compress zone takes neighbours up to this multiple of the smallest smoothed variance."""
    scales: tuple[Positive, Positive, Positive] = (1.5, 0.35, 1.2)
    """Of the ranks in the zones Mix, Compress and Refine, relative to each other."""

    @model_validator(mode="after")
    def _says_nothing_in_vain(self) -> Allocation:
        read = {"kind", "multiple_of", "cap", *KNOBS[self.kind]}
        if vain := sorted(self.model_fields_set - read):
            raise ValueError(f"allocation {self.kind!r} does not read {', '.join(vain)}; it reads {sorted(read)}")
        return self


class Budget(Strict):
    """How many numbers all factors of an arm may have together. Exactly one of its keys is said."""

    rank: int | None = Field(default=None, ge=1)
    """As many as with this rank in every group, or a group's largest where that is less."""
    keep: float | None = Field(default=None, gt=0, le=1)
    """This share of the numbers of the matrices that are replaced."""
    same_bytes_as: Name | None = None
    """As many bytes as another arm has."""

    @model_validator(mode="after")
    def _one_is_said(self) -> Budget:
        if sum(value is not None for value in (self.rank, self.keep, self.same_bytes_as)) != 1:
            raise ValueError("a budget is exactly one of rank, keep and same_bytes_as")
        return self

    def numbers(self, groups: Sequence[Group]) -> int:
        """Numbers of all factors together, at most.

        Raises:
            StudyError: It is another arm's.
        """
        if self.rank is not None:
            return sum(group.factored_numbers(min(self.rank, group.max_rank)) for group in groups)
        if self.keep is not None:
            return share_of(self.keep, sum(group.dense_numbers for group in groups))
        raise StudyError("this budget is another arm's, and has no numbers of its own", value=self.same_bytes_as)


def share_of(keep: float, numbers: int) -> int:
    """The most numbers that are a share `keep` of so many.

    The share is taken as it was written: 0.29 of 100 is 29, and not the 28 that binary fractions make of it.
    """
    return int(Decimal(str(keep)) * numbers)
