"""How a codec writes a block: rows of numbers become a few typed parts, and come back.

A block is the streams of one message, or of several, that have one half and one width of codes; a row of it is a stream
[heads, tokens, head_dim]. The parts of a row, their types and lengths, are those of docs/reference/wire-format.md;
the last part is the codes, where there are any.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from nullarm.protocols.kv_communication.geometry import Half
from nullarm.protocols.kv_communication.wire.codec import Codec

Part = tuple[torch.dtype, int]
"""Type and count of numbers."""
CodecT = TypeVar("CodecT", bound=Codec)


class Shape(NamedTuple):
    """Of a stream."""

    heads: int
    tokens: int
    head_dim: int

    @property
    def numbers(self) -> int:
        """Numbers of the stream."""
        return self.heads * self.tokens * self.head_dim


@dataclass(frozen=True)
class Scheme(ABC, Generic[CodecT]):
    """How a block of a codec is written.

    Attributes:
        codec: The codec; its own `bits` mean nothing here.
        shape: Of a row.
        half: Of all rows.
        bits: Width of the codes.
    """

    codec: CodecT
    shape: Shape
    half: Half
    bits: int

    @property
    def width(self) -> int:
        """Bits that a code takes up: under Huffman coding, where bytes are symbols, four for three."""
        return 4 if self.bits == 3 and getattr(self.codec, "entropy", False) else self.bits

    @property
    @abstractmethod
    def parts(self) -> tuple[Part, ...]:
        """Parts of a row, in the order in which they are written."""

    @abstractmethod
    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        """Parts [rows, count] of rows x [rows, heads, tokens, head_dim] of any floating dtype."""

    @abstractmethod
    def decode(self, parts: tuple[Tensor, ...], out: Tensor) -> None:
        """Write the rows that `parts` hold into `out` [rows, heads, tokens, head_dim], of any floating dtype."""


def flat(x: Tensor) -> Tensor:
    """Rows [rows, numbers]; on a CPU, which is slow at half precision, in fp32."""
    return x.flatten(1) if x.is_cuda else x.flatten(1).float()
