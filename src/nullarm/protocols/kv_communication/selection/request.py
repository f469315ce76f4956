"""What the receiver sends first in a two-round exchange: which of the sharer's tokens it wants.

Little-endian: magic `NKVR`, version (1 byte), number of the sharer's tokens (4 bytes), CRC-32 of what precedes it and
of the bitmap (4 bytes), then the bitmap, token 0 the lowest bit of the first byte.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

import numpy as np

from nullarm.errors import MessageError
from nullarm.protocols.kv_communication.wire.header import bitmap_of

HEADER = struct.Struct("<4sBII")
MAGIC, VERSION = b"NKVR", 1
_SIGNED = struct.Struct("<4sBI")


def request_bytes(tokens: int) -> int:
    """Bytes of a request to a sharer whose sequence has so many tokens: `len(encode_request(…))`."""
    return HEADER.size + (tokens + 7) // 8


def encode_request(positions: Sequence[int], tokens: int) -> bytes:
    """The request.

    Args:
        positions: Wanted positions of the sharer's sequence.
        tokens: Its length.
    """
    bitmap = bitmap_of(np.asarray(positions, dtype=np.int64), tokens)
    crc = zlib.crc32(bitmap, zlib.crc32(_SIGNED.pack(MAGIC, VERSION, tokens)))
    return HEADER.pack(MAGIC, VERSION, tokens, crc) + bitmap


def decode_request(blob: bytes) -> list[int]:
    """The wanted positions, ascending.

    Raises:
        MessageError: The request is truncated, damaged or of another version.
    """
    if len(blob) < HEADER.size:
        raise MessageError("the request is truncated", value=f"{len(blob)} bytes", valid=f"at least {HEADER.size}")
    magic, version, tokens, crc = HEADER.unpack_from(blob)
    if (magic, version) != (MAGIC, VERSION):
        raise MessageError("this is no request of this version", value=(magic, version), valid=[(MAGIC, VERSION)])
    if len(blob) != request_bytes(tokens):
        raise MessageError("the request has another length", value=len(blob), valid=str(request_bytes(tokens)))
    bitmap = blob[HEADER.size :]
    if crc != zlib.crc32(bitmap, zlib.crc32(_SIGNED.pack(magic, version, tokens))):
        raise MessageError("the request is damaged: its check sum is another", value=f"{crc:08x}")
    bits = np.unpackbits(np.frombuffer(bitmap, dtype=np.uint8), bitorder="little")
    positions: list[int] = np.flatnonzero(bits).tolist()
    return positions
