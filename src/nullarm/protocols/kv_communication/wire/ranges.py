"""Groups on even grids between two bounds, each in fp16: what most codecs have in common."""

from __future__ import annotations

import torch
from torch import Tensor

from nullarm.protocols.kv_communication.wire.affine import Grouping, dequantise, quantise
from nullarm.protocols.kv_communication.wire.codec import Asymmetric
from nullarm.protocols.kv_communication.wire.planes import packed_bytes
from nullarm.protocols.kv_communication.wire.scheme import CodecT, Part, Scheme, flat


class Ranges(Scheme[CodecT]):
    """Groups on an even grid between two bounds in fp16: their least and their largest number, both rounded outwards.

    At one bit, where the bounds are all there is, they are the means of the numbers above and not above the middle.
    """

    grouping: Grouping

    @property
    def range_parts(self) -> tuple[Part, ...]:
        """Lower bounds, upper bounds and codes."""
        bounds: Part = (torch.float16, self.grouping.count)
        return bounds, bounds, (torch.uint8, packed_bytes(self.grouping.numbers, self.width))

    def encode_ranges(self, x: Tensor) -> tuple[Tensor, ...]:
        """Parts of numbers [rows, numbers]."""
        low, high = (bound.float() for bound in self.grouping.extremes(x))
        if self.bits == 1:
            bounds = tuple(mean.half() for mean in self.grouping.means(x, (low + high) / 2))
        else:
            bounds = -rounded_up(-low), rounded_up(high)
        return *bounds, quantise(x, *self._grid(*bounds), self.grouping, self.width)

    def decode_ranges(self, parts: tuple[Tensor, ...], out: Tensor) -> None:
        """Into `out` [rows, numbers]."""
        low, high, packed = parts
        offset, step = self._grid(low, high)
        dequantise(packed, offset, step, self.grouping, self.width, out)

    def _grid(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Offset and step; the step of a group of equal numbers is nothing that a code 0 could show."""
        offset = low.float()
        step = (high.float() - offset) / (2**self.bits - 1)
        return offset, torch.where(step > 0, step, 1.0)


def rounded_up(x: Tensor) -> Tensor:
    """fp32 as the next fp16 that is not below; infinite above 65,504."""
    near = x.half()
    above = (x + x.abs() * 2**-11 + 2**-25).half()  # half a unit in the last place more
    return torch.where(near.float() < x, above, near)


class AsymmetricScheme(Ranges[Asymmetric]):
    """Groups along a head."""

    @property
    def grouping(self) -> Grouping:  # type: ignore[override]
        """Neighbours of one token and head."""
        return Grouping.along(self.shape.heads * self.shape.tokens, self.shape.head_dim, self.codec.group)

    @property
    def parts(self) -> tuple[Part, ...]:
        """Bounds and codes."""
        return self.range_parts

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        """On the grids of their groups."""
        return self.encode_ranges(flat(x))

    def decode(self, parts: tuple[Tensor, ...], out: Tensor) -> None:
        """From the grids of their groups."""
        self.decode_ranges(parts, out.flatten(1))
