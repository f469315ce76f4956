"""Keys in groups along tokens, values along channels, the latest tokens as they are (KIVI, arXiv 2402.02750)."""

from __future__ import annotations

import torch
from torch import Tensor

from nullarm.protocols.kv_communication.wire.affine import Grouping
from nullarm.protocols.kv_communication.wire.codec import Kivi
from nullarm.protocols.kv_communication.wire.ranges import Ranges
from nullarm.protocols.kv_communication.wire.scheme import Part, flat


class KiviScheme(Ranges[Kivi]):
    """Groups along tokens or along a head, by half; the latest tokens in bf16."""

    @property
    def recent(self) -> int:
        """Tokens that are not quantised."""
        return min(self.codec.window, self.shape.tokens)

    @property
    def grouping(self) -> Grouping:  # type: ignore[override]
        """Of what is quantised."""
        heads, tokens, width = self.shape.heads, self.shape.tokens - self.recent, self.shape.head_dim
        if self.half == "key":
            return Grouping.along(heads, tokens, self.codec.group, inner=width)
        return Grouping.along(heads * tokens, width, self.codec.group)

    @property
    def parts(self) -> tuple[Part, ...]:
        """Latest tokens, bounds and codes."""
        return (torch.bfloat16, self.shape.heads * self.recent * self.shape.head_dim), *self.range_parts

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        """The latest as they are, all before them on grids."""
        old, recent = x.tensor_split([self.shape.tokens - self.recent], 2)
        return recent.flatten(1).bfloat16(), *self.encode_ranges(flat(old))

    def decode(self, parts: tuple[Tensor, ...], out: Tensor) -> None:
        """The latest as they are, all before them from grids."""
        old, recent = out.tensor_split([self.shape.tokens - self.recent], 2)
        recent.copy_(parts[0].view(recent.shape))
        numbers = out.new_empty((len(out), self.grouping.numbers))
        self.decode_ranges(parts[1:], numbers)
        old.copy_(numbers.view(old.shape))
