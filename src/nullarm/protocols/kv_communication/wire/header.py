"""The head of a message: what is in it, and how it is written. Layout: docs/reference/wire-format.md."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import get_args

import numpy as np
from pydantic import ValidationError

from nullarm.errors import MessageError
from nullarm.protocols.kv_communication.geometry import HALVES, Half, Stream
from nullarm.protocols.kv_communication.wire.codec import (
    Asymmetric,
    Codec,
    Kivi,
    NormalFloat,
    Outlier,
    Raw,
    Rotated,
    Symmetric,
    widths,
)

VERSION = 1
"""Of the layout that this nullarm writes, and the only one so far."""

_MAGIC = b"NLKV"
_FIXED = struct.Struct("<4sHBBBBHHHIIdIII")
_ROW = struct.Struct("<HBB")
_KINDS: tuple[type[Codec], ...] = (Raw, Symmetric, Asymmetric, Rotated, Kivi, NormalFloat, Outlier)
_VARIANTS = {
    Raw: ("dtype", get_args(Raw.model_fields["dtype"].annotation)),
    Symmetric: ("axis", get_args(Symmetric.model_fields["axis"].annotation)),
}
"""Field that is on the wire as the place of its value in the tuple."""


@dataclass(frozen=True, order=True)
class Row:
    """One stream of the table; the order of rows is their order on the wire."""

    bits: int
    half_code: int
    layer: int

    @property
    def half(self) -> Half:
        """Keys or values."""
        return HALVES[self.half_code]

    @property
    def stream(self) -> Stream:
        """Which of the sharer's."""
        return Stream(self.layer, self.half)


@dataclass(frozen=True)
class Header:
    """What a message says of itself.

    Attributes:
        codec: How numbers are written. Fields that only a sender needs (`bits`, `eps`) have their defaults in a header
            that was read.
        heads: Heads of a stream.
        head_dim: Width of a head.
        rows: Streams, ascending, none twice.
        tokens: Length of the sharer's sequence.
        sent: Tokens that are in the message; 0 where no stream is.
        first: The first of them, where they are a range; else 0.
        bitmap: Which they are, one bit a token, where they are no range.
    """

    codec: Codec
    heads: int
    head_dim: int
    rows: tuple[Row, ...]
    tokens: int
    sent: int
    first: int
    bitmap: bytes | None

    def blocks(self) -> Iterator[tuple[Half, int, int]]:
        """Half, bits and number of streams of each block."""
        for (bits, half_code), rows in groupby(self.rows, lambda row: (row.bits, row.half_code)):
            yield HALVES[half_code], bits, len(list(rows))

    def pack(self) -> bytes:
        """The header on the wire.

        Raises:
            MessageError: A size is more than its field holds.
        """
        codec = self.codec
        variant, names = _VARIANTS.get(type(codec), ("", ()))
        try:
            fixed = _FIXED.pack(
                _MAGIC, VERSION, _KINDS.index(type(codec)), names.index(getattr(codec, variant)) if variant else 0,
                getattr(codec, "entropy", False), self.bitmap is not None, len(self.rows), self.heads, self.head_dim,
                getattr(codec, "group", 0), getattr(codec, "window", 0), getattr(codec, "share", 0.0),
                self.tokens, self.sent, self.first,
            )  # fmt: skip
            table = b"".join(_ROW.pack(row.layer, row.half_code, row.bits) for row in self.rows)
        except struct.error as error:
            raise MessageError(f"{self.heads} heads × {self.sent} tokens are too much for a message: {error}") from None
        return fixed + table + (self.bitmap or b"")


def read_header(blob: bytes | memoryview) -> tuple[Header, int]:
    """The header of a blob whose checksum holds, and its length in bytes.

    Raises:
        MessageError: It is cut short, contradicts itself, or is of no version that is known here.
    """
    refuse_foreign(blob)
    try:
        header, length = _parse(memoryview(blob))
    except (struct.error, IndexError, ValidationError) as error:
        raise damaged(f"its header cannot be read ({type(error).__name__})") from None
    if header.pack() != bytes(blob[:length]) or len({(r.layer, r.half_code) for r in header.rows}) != len(header.rows):
        raise damaged("its header contradicts itself")
    _refuse_absurd(header)
    return header, length


def refuse_foreign(blob: bytes | memoryview) -> None:
    """Refuse what is no message, or of another version.

    Raises:
        MessageError: It is.
    """
    if bytes(blob[:4]) != _MAGIC or len(blob) < 6:
        raise damaged(f"{len(blob)} bytes that do not begin as a message does")
    if (version := int.from_bytes(blob[4:6], "little")) != VERSION:
        raise MessageError(
            "a message is of another version", value=version, valid=f"this nullarm reads version {VERSION}"
        )


def damaged(how: str) -> MessageError:
    """The error of a blob that is not as it was sent."""
    return MessageError(f"a message is damaged: {how}")


def bitmap_of(positions: np.ndarray, tokens: int) -> bytes:
    """One bit a token, the lowest of a byte first."""
    chosen = np.zeros(tokens, bool)
    chosen[positions] = True
    return np.packbits(chosen, bitorder="little").tobytes()


def positions_of(header: Header) -> np.ndarray:
    """Positions [sent] of a header, int64, ascending."""
    if header.bitmap is None:
        return np.arange(header.first, header.first + header.sent)
    bits = np.unpackbits(np.frombuffer(header.bitmap, np.uint8), count=header.tokens, bitorder="little")
    return np.flatnonzero(bits)


def _parse(blob: memoryview) -> tuple[Header, int]:
    (_, _, kind, variant, entropy, has_bitmap, streams, heads, head_dim, group, window, share, tokens, sent, first) = (
        _FIXED.unpack_from(blob)
    )
    start = _FIXED.size
    table = [_ROW.unpack_from(blob, start + k * _ROW.size) for k in range(streams)]
    end = start + streams * _ROW.size
    bitmap = bytes(blob[end : end + -(-tokens // 8)]) if has_bitmap else None
    model = _KINDS[kind]
    fields = {"entropy": bool(entropy), "group": group, "window": window, "share": share}
    if model in _VARIANTS:
        name, names = _VARIANTS[model]
        fields[name] = names[variant]
    codec = model(**{name: value for name, value in fields.items() if name in model.model_fields})
    rows = tuple(Row(bits, half, layer) for layer, half, bits in table)
    header = Header(codec, heads, head_dim, rows, tokens, sent, first, bitmap)
    return header, end + len(bitmap or b"")


def _refuse_absurd(header: Header) -> None:
    rows, bitmap = header.rows, header.bitmap
    if list(rows) != sorted(rows) or any(r.bits not in widths(header.codec) or r.half_code > 1 for r in rows):
        raise damaged("its table of streams is out of order, or has widths that its codec does not")
    if not rows and (header.sent or bitmap):
        raise damaged("it has tokens and no stream")
    if rows and not header.heads * header.head_dim:
        raise damaged("its streams have no width")
    if bitmap is None:
        if header.first + header.sent > header.tokens:
            raise damaged(f"it has tokens up to {header.first + header.sent} of {header.tokens}")
    elif int.from_bytes(bitmap, "little").bit_count() != header.sent or len(bitmap) != -(-header.tokens // 8):
        raise damaged(f"its bitmap does not have {header.sent} tokens")
    elif int.from_bytes(bitmap, "little") >> header.tokens:
        raise damaged("its bitmap is longer than its sequence")
