"""Codecs as data: how the numbers of a message are written.

No torch; `wire.message` does the work, and `wire.size` counts the bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from nullarm.study.spec import Strict

Bits = Literal[1, 2, 3, 4, 8]


class Raw(Strict):
    """Floating-point numbers as they are."""

    kind: Literal["raw"] = "raw"
    """Name of the codec."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Of the numbers on the wire."""


class Symmetric(Strict):
    """One scale per head or per layer: the source's post-training quantisation, parity mode.

    qmax = 2^(bits − 1) − 1, scale = max(amax / qmax, eps), codes round(x / scale) clamped to ±qmax.
    """

    kind: Literal["symmetric"] = "symmetric"
    """Name of the codec."""
    bits: Literal[2, 3, 4, 8] = 8
    """Bits of a code."""
    axis: Literal["head", "layer"] = "head"
    """One scale (fp32) per head, over tokens and width, or one per stream."""
    eps: float = Field(default=1e-6, gt=0)
    """Least scale."""
    entropy: bool = False
    """Also Huffman-code the codes."""


class Asymmetric(Strict):
    """Per token, groups along the width of a head, each with its minimum and maximum (fp16, rounded outwards)."""

    kind: Literal["asymmetric"] = "asymmetric"
    """Name of the codec."""
    bits: Bits = 4
    """Bits of a code."""
    group: int = Field(default=32, ge=2)
    """Numbers of a group; a head that is narrower is one group, a last group may be shorter."""
    entropy: bool = False
    """Also Huffman-code the codes."""


class Rotated(Asymmetric):
    """As `asymmetric`, after an orthonormal Hadamard rotation of every head (QuaRot, 2404.00456), undone by the reader.

    A head whose width is not a power of two is rotated in blocks of the largest power of two that divides it.
    """

    kind: Literal["rotated"] = "rotated"  # type: ignore[assignment]
    """Name of the codec."""


class Kivi(Strict):
    """Keys per channel in groups of tokens, values per token in groups of channels (KIVI, 2402.02750).

    Recent tokens stay in bf16.
    """

    kind: Literal["kivi"] = "kivi"
    """Name of the codec."""
    bits: Bits = 2
    """Bits of a code."""
    group: int = Field(default=32, ge=2)
    """Tokens of a group of keys, channels of a group of values."""
    window: int = Field(default=0, ge=0)
    """Last tokens of the message that are sent in bf16."""
    entropy: bool = False
    """Also Huffman-code the codes."""


class NormalFloat(Strict):
    """Four-bit NormalFloat (QLoRA, 2305.14314, appendix E): quantiles of a normal, per token and group, scale fp16."""

    kind: Literal["nf4"] = "nf4"
    """Name of the codec."""
    group: int = Field(default=32, ge=2)
    """Numbers of a group, along the width of a head."""
    entropy: bool = False
    """Also Huffman-code the codes."""

    @property
    def bits(self) -> Literal[4]:
        """Bits of a code."""
        return 4


class Outlier(Strict):
    """As `asymmetric`, with the largest numbers of every stream kept in fp16 with their places."""

    kind: Literal["outlier"] = "outlier"
    """Name of the codec."""
    bits: Bits = 4
    """Bits of a code."""
    group: int = Field(default=32, ge=2)
    """Numbers of a group."""
    share: float = Field(default=0.01, gt=0, le=0.25)
    """Share of the numbers of a stream, by magnitude, that are kept; at least one."""
    entropy: bool = False
    """Also Huffman-code the codes."""


Codec = Annotated[Raw | Symmetric | Asymmetric | Rotated | Kivi | NormalFloat | Outlier, Field(discriminator="kind")]

NAMED: Mapping[str, Codec] = {
    "fp32": Raw(dtype="float32"),
    "bf16": Raw(),
    "fp16": Raw(dtype="float16"),
    "int8": Symmetric(bits=8),
    "int4": Symmetric(bits=4),
}
"""Codecs that every study knows by name; a study may name more."""

_ADAPTER: TypeAdapter[Codec] = TypeAdapter(Codec)


def widths(codec: Codec) -> tuple[int, ...]:
    """Widths that a stream's numbers can have on the wire, bits."""
    match codec:
        case Raw():
            return (32,) if codec.dtype == "float32" else (16,)
        case Symmetric():
            return (2, 3, 4, 8)
        case NormalFloat():
            return (4,)
        case _:
            return (1, 2, 3, 4, 8)


def codec_of(data: Mapping[str, Any]) -> Codec:
    """The codec that plain data describe, as a cell's parameters have it."""
    return _ADAPTER.validate_python(data)
