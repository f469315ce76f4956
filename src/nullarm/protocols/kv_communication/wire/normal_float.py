"""Groups on the sixteen levels of NormalFloat, scaled by their largest magnitude (QLoRA, arXiv 2305.14314)."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from nullarm.protocols.kv_communication.wire.affine import Grouping
from nullarm.protocols.kv_communication.wire.codec import NormalFloat
from nullarm.protocols.kv_communication.wire.packing import pack, unpack
from nullarm.protocols.kv_communication.wire.planes import packed_bytes
from nullarm.protocols.kv_communication.wire.ranges import rounded_up
from nullarm.protocols.kv_communication.wire.scheme import Part, Scheme, flat

LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""NormalFloat's, QLoRA appendix E."""
_CELLS = 2**14
"""Cells, 2⁻¹³ wide, that −1…1 is cut into to find the nearest level by table: nearest but for 2⁻¹⁴ of the scale."""


class NormalFloatScheme(Scheme[NormalFloat]):
    """The nearest of sixteen levels, times the scale of the group."""

    @property
    def grouping(self) -> Grouping:
        """Neighbours of one token and head."""
        return Grouping.along(self.shape.heads * self.shape.tokens, self.shape.head_dim, self.codec.group)

    @property
    def parts(self) -> tuple[Part, ...]:
        """Scales and codes."""
        return (torch.float16, self.grouping.count), (torch.uint8, packed_bytes(self.shape.numbers, 4))

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        """As the nearest levels."""
        x, grouping = flat(x), self.grouping
        low, high = grouping.extremes(x)
        scale = rounded_up(torch.maximum(-low, high).float())
        cells = grouping.view(x).float() * grouping.spread(torch.where(scale > 0, _CELLS / 2 / scale.float(), 0.0))
        at = cells.add_(_CELLS / 2).round_().to(torch.int32).clamp_(0, _CELLS).flatten()  # NaN is refused later on
        codes = _nearest_level().to(x.device).index_select(0, at)
        return scale, pack(codes.view(x.shape), 4)

    def decode(self, parts: tuple[Tensor, ...], out: Tensor) -> None:
        """As levels times scales."""
        scale, packed = parts
        codes = unpack(packed, 4, self.shape.numbers)
        levels = torch.tensor(LEVELS, device=out.device).index_select(0, codes.flatten().int()).view(codes.shape)
        view = self.grouping.view
        view(out).copy_(view(levels).mul_(self.grouping.spread(scale.float())))


@cache
def _nearest_level() -> Tensor:
    """Code of the level nearest to each point of the grid of cells, uint8 [_CELLS + 1]."""
    levels, points = torch.tensor(LEVELS), torch.linspace(-1, 1, _CELLS + 1)
    return torch.bucketize(points, (levels[1:] + levels[:-1]) / 2).to(torch.uint8)
