"""The scheme of each codec."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

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
from nullarm.protocols.kv_communication.wire.kivi import KiviScheme
from nullarm.protocols.kv_communication.wire.normal_float import NormalFloatScheme
from nullarm.protocols.kv_communication.wire.outlier import OutlierScheme
from nullarm.protocols.kv_communication.wire.planes import packed_bytes
from nullarm.protocols.kv_communication.wire.ranges import AsymmetricScheme
from nullarm.protocols.kv_communication.wire.rotated import RotatedScheme
from nullarm.protocols.kv_communication.wire.scheme import Part, Scheme, Shape, flat


class RawScheme(Scheme[Raw]):
    """The numbers, in a floating-point type."""

    @property
    def parts(self) -> tuple[Part, ...]:
        """The numbers."""
        return ((getattr(torch, self.codec.dtype), self.shape.numbers),)

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        """Converted where their type is another."""
        return (x.flatten(1).to(self.parts[0][0]),)

    def decode(self, parts: tuple[Tensor, ...], out: Tensor) -> None:
        """Converted where `out` is of another."""
        out.flatten(1).copy_(parts[0])


class SymmetricScheme(Scheme[Symmetric]):
    """Multiples of a scale, that of the largest magnitude of a head or of the stream."""

    @property
    def top(self) -> int:
        """Largest code; that of 0 is the same number, as codes have no sign."""
        return int(2 ** (self.bits - 1)) - 1

    @property
    def grouping(self) -> Grouping:
        """The whole of a head, or of the stream."""
        scales = self.shape.heads if self.codec.axis == "head" else 1
        length = self.shape.numbers // max(1, scales)
        return Grouping.along(scales, length, length)

    @property
    def parts(self) -> tuple[Part, ...]:
        """Scales and codes."""
        return (torch.float32, self.grouping.outer), (torch.uint8, packed_bytes(self.shape.numbers, self.width))

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        """As multiples of the scales."""
        x, grouping = flat(x), self.grouping
        if grouping.length:
            low, high = grouping.extremes(x)
            largest = torch.maximum(-low, high).float()
        else:
            largest = x.new_zeros((len(x), grouping.outer), dtype=torch.float32)
        scale = (largest / self.top).clamp_(min=self.codec.eps)
        return scale, quantise(x, torch.zeros_like(scale), scale, grouping, self.width, self.top)

    def decode(self, parts: tuple[Tensor, ...], out: Tensor) -> None:
        """From multiples of the scales."""
        scale, packed = parts
        dequantise(packed, torch.zeros_like(scale), scale, self.grouping, self.width, out.flatten(1), self.top)


_SCHEMES: dict[type[Any], type[Scheme[Any]]] = {
    Raw: RawScheme,
    Symmetric: SymmetricScheme,
    Asymmetric: AsymmetricScheme,
    Rotated: RotatedScheme,
    Kivi: KiviScheme,
    NormalFloat: NormalFloatScheme,
    Outlier: OutlierScheme,
}


def scheme(codec: Codec, shape: Shape, half: Half, bits: int) -> Scheme[Any]:
    """How a codec writes a block."""
    return _SCHEMES[type(codec)](codec, shape, half, bits)
