"""How many numbers and bytes each arm keeps, as far as shapes tell it: before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property, partial

import numpy as np

from nullarm.protocols.low_rank.allocation.allocate import allocate
from nullarm.protocols.low_rank.methods.settings import RoundToNearest
from nullarm.protocols.low_rank.parameters import CompressionArm, LowRankParameters, Slot
from nullarm.protocols.low_rank.slots import Group, groups

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Sizes:
    """Sizes of a study's arms.

    Attributes:
        parameters: The study's.
    """

    parameters: LowRankParameters

    def groups(self, arm: CompressionArm) -> list[Group]:
        """The groups of matrices that an arm compresses, layer by layer.

        Raises:
            ModelError: The model's shape is not known.
        """
        assert arm.method is not None  # for the type checker: only treated arms are asked for
        return self._groups(arm.slots, arm.method.shared)

    @cached_property
    def _groups(self) -> Callable[[tuple[Slot, ...], bool], list[Group]]:
        """The model's shapes are read once for arms of the same groups: a GGUF file's header takes a while."""
        return cache(partial(groups, self.parameters.model))

    def numbers(self, name: str) -> int | None:
        """Numbers that an arm's factors may have altogether; None where matrices are rounded.

        Raises:
            StudyError: The budget does not pay for the least ranks of the arm whose bytes are taken.
        """
        arm = self.parameters.compression[name]
        if arm.budget is None:
            return None
        if arm.budget.same_bytes_as is not None:
            return self.bytes(arm.budget.same_bytes_as) // BYTES[self.parameters.dtype]
        return arm.budget.numbers(self.groups(arm))

    def bytes(self, name: str) -> int:
        """Bytes of what an arm puts in the place of its matrices; where ranks hang on what is measured, at most.

        Raises:
            StudyError: The budget does not pay for the least ranks.
        """
        arm = self.parameters.compression[name]
        found, numbers = self.groups(arm), self.numbers(name)
        if isinstance(arm.method, RoundToNearest):
            return sum(arm.method.bytes(group.out_features[0], group.in_features) for group in found)
        assert numbers is not None  # for the type checker: an arm with ranks has a budget
        if ranks := self.ranks(name):
            numbers = sum(group.factored_numbers(rank) for group, rank in zip(found, ranks, strict=True))
        return numbers * BYTES[self.parameters.dtype]

    def ranks(self, name: str) -> list[int] | None:
        """Ranks of an arm's groups; None where matrices are rounded, or ranks hang on what is measured.

        Raises:
            StudyError: The budget does not pay for the least ranks.
        """
        arm, numbers = self.parameters.compression[name], self.numbers(name)
        if numbers is None or arm.allocation.kind != "uniform":
            return None
        return allocate(arm.allocation, self.groups(arm), numbers, rng=np.random.default_rng(0))  # draws nothing

    def dense_bytes(self, name: str) -> int:
        """Bytes of the matrices that an arm compresses, as they are loaded."""
        arm = self.parameters.compression[name]
        return sum(group.dense_numbers for group in self.groups(arm)) * BYTES[self.parameters.dtype]
