"""What each codec writes of a block: rows of numbers become a few typed parts, and come back.

A block is the streams of one message, or of several, that have one half and one width of codes; a row of it is a stream
[heads, tokens, head_dim]. The parts of a row, their types and lengths, are those of docs/reference/wire-format.md;
the last part is the codes, where there are any.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from nullarm.errors import MessageError
from nullarm.protocols.kv_communication.geometry import Half
from nullarm.protocols.kv_communication.wire.affine import Grouping, dequantise, quantise
from nullarm.protocols.kv_communication.wire.codec import (
    Asymmetric,
    Codec,
    Kivi,
    NormalFloat,
    Outlier,
    Raw,
    Rotated,
    Symmetric,
)
from nullarm.protocols.kv_communication.wire.packing import pack, packed_bytes, unpack

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


class _Raw(Scheme[Raw]):
    @property
    def parts(self) -> tuple[Part, ...]:
        return ((getattr(torch, self.codec.dtype), self.shape.numbers),)

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        return (x.flatten(1).to(self.parts[0][0]),)

    def decode(self, parts: tuple[Tensor, ...], out: Tensor) -> None:
        out.flatten(1).copy_(parts[0])


def _flat(x: Tensor) -> Tensor:
    """Rows [rows, numbers]; on a CPU, which is slow at half precision, in fp32."""
    return x.flatten(1) if x.is_cuda else x.flatten(1).float()


class _Symmetric(Scheme[Symmetric]):
    @property
    def top(self) -> int:
        """Largest code; that of 0 is the same number, as codes have no sign."""
        return int(2 ** (self.bits - 1)) - 1

    @property
    def grouping(self) -> Grouping:
        scales = self.shape.heads if self.codec.axis == "head" else 1
        length = self.shape.numbers // max(1, scales)
        return Grouping.along(scales, length, length)

    @property
    def parts(self) -> tuple[Part, ...]:
        return (torch.float32, self.grouping.outer), (torch.uint8, packed_bytes(self.shape.numbers, self.width))

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        x, grouping = _flat(x), self.grouping
        if grouping.length:
            low, high = grouping.extremes(x)
            largest = torch.maximum(-low, high).float()
        else:
            largest = x.new_zeros((len(x), grouping.outer), dtype=torch.float32)
        scale = (largest / self.top).clamp_(min=self.codec.eps)
        return scale, quantise(x, torch.zeros_like(scale), scale, grouping, self.width, self.top)

    def decode(self, parts: tuple[Tensor, ...], out: Tensor) -> None:
        scale, packed = parts
        dequantise(packed, torch.zeros_like(scale), scale, self.grouping, self.width, out.flatten(1), self.top)


class _Ranges(Scheme[CodecT]):
    """Groups on an even grid between two bounds in fp16: their least and their largest number, both rounded outwards.

    At one bit, where the bounds are all there is, they are the means of the numbers above and not above the middle.
    """

    grouping: Grouping

    @property
    def range_parts(self) -> tuple[Part, ...]:
        bounds: Part = (torch.float16, self.grouping.count)
        return bounds, bounds, (torch.uint8, packed_bytes(self.grouping.numbers, self.width))

    def encode_ranges(self, x: Tensor) -> tuple[Tensor, ...]:
        """Parts of numbers [rows, numbers]."""
        low, high = (bound.float() for bound in self.grouping.extremes(x))
        if self.bits == 1:
            bounds = tuple(mean.half() for mean in self.grouping.means(x, (low + high) / 2))
        else:
            bounds = -_rounded_up(-low), _rounded_up(high)
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


def _rounded_up(x: Tensor) -> Tensor:
    """fp32 as the next fp16 that is not below; infinite above 65,504."""
    near = x.half()
    above = (x + x.abs() * 2**-11 + 2**-25).half()  # half a unit in the last place more
    return torch.where(near.float() < x, above, near)


class _Asymmetric(_Ranges[Asymmetric]):
    @property
    def grouping(self) -> Grouping:  # type: ignore[override]
        return Grouping.along(self.shape.heads * self.shape.tokens, self.shape.head_dim, self.codec.group)

    @property
    def parts(self) -> tuple[Part, ...]:
        return self.range_parts

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.encode_ranges(_flat(x))

    def decode(self, parts: tuple[Tensor, ...], out: Tensor) -> None:
        self.decode_ranges(parts, out.flatten(1))


class _Rotated(_Asymmetric):
    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        return super().encode(rotate(x.float()))

    def decode(self, parts: tuple[Tensor, ...], out: Tensor) -> None:
        rotated = torch.empty(out.shape, dtype=torch.float32, device=out.device)
        super().decode(parts, rotated)
        out.copy_(rotate(rotated))


def rotate(x: Tensor) -> Tensor:
    """Orthonormal Hadamard rotation of the last axis, its own inverse.

    In blocks of the largest power of two that divides it.
    """
    block = x.shape[-1] & -x.shape[-1]
    rotated: Tensor = torch.mm(x.reshape(-1, block), _hadamard(block).to(x.device))
    return rotated.view(x.shape)


@cache
def _hadamard(size: int) -> Tensor:
    """Sylvester's, [size, size], divided by √size."""
    matrix: Tensor = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix.div_(size**0.5)


class _Kivi(_Ranges[Kivi]):
    @property
    def recent(self) -> int:
        """Tokens that are not quantised."""
        return min(self.codec.window, self.shape.tokens)

    @property
    def grouping(self) -> Grouping:  # type: ignore[override]
        heads, tokens, width = self.shape.heads, self.shape.tokens - self.recent, self.shape.head_dim
        if self.half == "key":
            return Grouping.along(heads, tokens, self.codec.group, inner=width)
        return Grouping.along(heads * tokens, width, self.codec.group)

    @property
    def parts(self) -> tuple[Part, ...]:
        return (torch.bfloat16, self.shape.heads * self.recent * self.shape.head_dim), *self.range_parts

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        old, recent = x.tensor_split([self.shape.tokens - self.recent], 2)
        return recent.flatten(1).bfloat16(), *self.encode_ranges(_flat(old))

    def decode(self, parts: tuple[Tensor, ...], out: Tensor) -> None:
        old, recent = out.tensor_split([self.shape.tokens - self.recent], 2)
        recent.copy_(parts[0].view(recent.shape))
        numbers = out.new_empty((len(out), self.grouping.numbers))
        self.decode_ranges(parts[1:], numbers)
        old.copy_(numbers.view(old.shape))


LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""NormalFloat's, QLoRA appendix E."""
_CELLS = 2**14
"""Cells, 2⁻¹³ wide, that −1…1 is cut into to find the nearest level by table: nearest but for 2⁻¹⁴ of the scale."""


class _NormalFloat(Scheme[NormalFloat]):
    @property
    def grouping(self) -> Grouping:
        return Grouping.along(self.shape.heads * self.shape.tokens, self.shape.head_dim, self.codec.group)

    @property
    def parts(self) -> tuple[Part, ...]:
        return (torch.float16, self.grouping.count), (torch.uint8, packed_bytes(self.shape.numbers, 4))

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        x, grouping = _flat(x), self.grouping
        low, high = grouping.extremes(x)
        scale = _rounded_up(torch.maximum(-low, high).float())
        cells = grouping.view(x).float() * grouping.spread(torch.where(scale > 0, _CELLS / 2 / scale.float(), 0.0))
        at = cells.add_(_CELLS / 2).round_().to(torch.int32).clamp_(0, _CELLS).flatten()  # NaN is refused later on
        codes = _nearest_level().to(x.device).index_select(0, at)
        return scale, pack(codes.view(x.shape), 4)

    def decode(self, parts: tuple[Tensor, ...], out: Tensor) -> None:
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


class _Outlier(_Ranges[Outlier]):
    @property
    def kept(self) -> int:
        """Numbers of a row that are kept."""
        numbers = self.shape.numbers
        return min(numbers, max(1, int(self.codec.share * numbers + 0.5)))

    @property
    def grouping(self) -> Grouping:  # type: ignore[override]
        return Grouping.along(self.shape.heads * self.shape.tokens, self.shape.head_dim, self.codec.group)

    @property
    def parts(self) -> tuple[Part, ...]:
        return (torch.int32, self.kept), (torch.float16, self.kept), *self.range_parts

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        x = _flat(x)
        places = x.abs().topk(self.kept, 1, sorted=False).indices.sort(1).values
        kept = x.gather(1, places)
        return places.int(), kept.half(), *self.encode_ranges(x.scatter(1, places, 0))

    def decode(self, parts: tuple[Tensor, ...], out: Tensor) -> None:
        places, kept, *ranges = parts
        ascending = (places[:, 1:] > places[:, :-1]).all()
        if not bool(ascending & (places >= 0).all() & (places < self.shape.numbers).all()):
            raise MessageError("a message is damaged: places of outliers are out of order or out of range")
        numbers = out.flatten(1)
        self.decode_ranges(tuple(ranges), numbers)
        numbers.scatter_(1, places.long(), kept.to(out.dtype))


_SCHEMES: dict[type[Any], type[Scheme[Any]]] = {
    Raw: _Raw,
    Symmetric: _Symmetric,
    Asymmetric: _Asymmetric,
    Rotated: _Rotated,
    Kivi: _Kivi,
    NormalFloat: _NormalFloat,
    Outlier: _Outlier,
}


def scheme(codec: Codec, shape: Shape, half: Half, bits: int) -> Scheme[Any]:
    """How a codec writes a block."""
    return _SCHEMES[type(codec)](codec, shape, half, bits)
