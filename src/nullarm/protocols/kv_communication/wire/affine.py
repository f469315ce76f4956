"""Numbers on even grids: each group has an offset and a step, and a number is the nearest point of its group's grid.

On a GPU the arithmetic and the packing are one pass where groups are neighbours in memory; on a CPU they are a few
passes over rows that are small enough for the cache.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nullarm.protocols.kv_communication.wire.packing import pack, unpack


@dataclass(frozen=True)
class Grouping:
    """How the numbers of a stream, as [outer, length, inner], are put into groups along the length.

    A last group may be shorter.

    Attributes:
        outer: What lies outside of groups.
        length: Numbers along which groups are laid.
        size: Numbers of a group.
        inner: Numbers between two neighbours of one group.
    """

    outer: int
    length: int
    size: int
    inner: int = 1

    @classmethod
    def along(cls, outer: int, length: int, size: int, inner: int = 1) -> Grouping:
        """Groups no larger than what there is."""
        return cls(outer, length, max(1, min(size, length)), inner)

    @property
    def groups(self) -> int:
        """Along the length."""
        return -(-self.length // self.size)

    @property
    def count(self) -> int:
        """Groups of a stream."""
        return self.outer * self.groups * self.inner

    @property
    def numbers(self) -> int:
        """Numbers of a stream."""
        return self.outer * self.length * self.inner

    @property
    def even(self) -> bool:
        """Are groups neighbours in memory, all of one size?"""
        return self.inner == 1 and self.length == self.groups * self.size

    def view(self, x: Tensor) -> Tensor:
        """[rows, numbers] as [rows, outer, length, inner]."""
        return x.view(len(x), self.outer, self.length, self.inner)

    def extremes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Least and largest number of every group, [rows, count], of x [rows, numbers], in its dtype."""
        x = self.view(x)
        whole = self.length // self.size
        cut = whole * self.size
        parts = [x[:, :, :cut].reshape(len(x), self.outer, whole, self.size, self.inner)]
        if whole < self.groups:
            parts.append(x[:, :, None, cut:])
        low, high = ([reduce(part, 3) for part in parts] for reduce in (torch.amin, torch.amax))
        return torch.cat(low, 2).flatten(1), torch.cat(high, 2).flatten(1)

    def means(self, x: Tensor, middle: Tensor) -> tuple[Tensor, Tensor]:
        """Mean of a group's numbers up to its middle, and of those above, [rows, count]; the middle where none is."""
        apart = self.view(x).float() - self.spread(middle)
        above = (apart > 0).float()
        count, over, total = (self._sums(part) for part in (above, apart * above, apart))
        rest = self._sums(torch.ones_like(above)) - count
        return middle + (total - over) / rest.clamp_(min=1), middle + over / count.clamp_(min=1)

    def _sums(self, x: Tensor) -> Tensor:
        """Of every group, [rows, count]."""
        missing = self.groups * self.size - self.length
        whole = torch.nn.functional.pad(x, (0, 0, 0, missing))
        return whole.view(len(x), self.outer, self.groups, self.size, self.inner).sum(3).flatten(1)

    def spread(self, values: Tensor) -> Tensor:
        """Values of groups [rows, count], to go with x as [rows, outer, length, inner]."""
        values = values.view(len(values), self.outer, self.groups, self.inner)
        if self.groups == 1:
            return values
        each = values[:, :, :, None].expand(-1, -1, -1, self.size, -1)
        return each.flatten(2, 3)[:, :, : self.length]


def quantise(x: Tensor, offset: Tensor, step: Tensor, grouping: Grouping, bits: int, shift: int = 0) -> Tensor:
    """Pack the codes round((x − offset)/step) + shift, rounded half to even, into uint8 [rows, bytes].

    Args:
        x: Numbers [rows, numbers], any floating dtype.
        offset: fp32 [rows, count].
        step: fp32 [rows, count], above 0.
        grouping: Which numbers share an offset and a step.
        bits: Width of a code.
        shift: Code of the offset.
    """
    if not x.numel():
        return x.new_empty((len(x), 0), dtype=torch.uint8)
    if x.is_cuda and grouping.even:
        from nullarm.protocols.kv_communication.wire import kernels

        return kernels.quantise(x, offset, step, shift, bits)
    grid = (grouping.view(x).float() - grouping.spread(offset)).div_(grouping.spread(step)).round_()
    if shift:
        grid += shift
    # Past the ends by rounding only. By way of int16: torch converts floats to bytes one at a time.
    codes = grid.clamp_(0, 2**bits - 1).to(torch.int16).to(torch.uint8)
    return pack(codes.flatten(1), bits)


def dequantise(
    packed: Tensor, offset: Tensor, step: Tensor, grouping: Grouping, bits: int, out: Tensor, shift: int = 0
) -> None:
    """Write (code − shift)·step + offset into `out` [rows, numbers], any floating dtype; arguments as of `quantise`."""
    if not out.numel():
        return
    if packed.is_cuda and grouping.even:
        from nullarm.protocols.kv_communication.wire import kernels

        kernels.dequantise(packed, offset, step, shift, bits, out)
        return
    grid = grouping.view(unpack(packed, bits, grouping.numbers)).float()
    if shift:
        grid -= shift
    grouping.view(out).copy_(grid.mul_(grouping.spread(step)).add_(grouping.spread(offset)))
