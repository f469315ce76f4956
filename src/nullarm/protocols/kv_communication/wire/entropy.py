"""Huffman coding of packed codes, which pays where they are uneven: deflate without matches, behind its length."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

from nullarm.protocols.kv_communication.wire.header import damaged

_RAW_DEFLATE = -15
_LENGTH_BYTES = 4


def compress(packed: Any) -> tuple[bytes, bytes]:
    """Length and stream. Several codes of a byte are one symbol, so that a code can take less than a bit."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, _RAW_DEFLATE, 9, zlib.Z_HUFFMAN_ONLY)
    stream = deflate.compress(packed) + deflate.flush()
    return len(stream).to_bytes(_LENGTH_BYTES, "little"), stream


def inflate(body: memoryview, at: int, size: int) -> tuple[np.ndarray, int]:
    """The `size` bytes of packed codes whose length and stream begin at `at`, and where the stream ends.

    Raises:
        MessageError: It is truncated or damaged, or gives more or fewer bytes.
    """
    start = at + _LENGTH_BYTES
    end = start + int.from_bytes(body[at:start], "little")
    stream = body[start:end]
    # No symbol of a Huffman code takes less than a bit: what claims more is made to exhaust memory.
    if end > len(body) or size > 8 * len(stream):
        raise damaged(f"{size} bytes of codes cannot be in the {max(0, len(body) - start)} that are left")
    inflated = zlib.decompressobj(_RAW_DEFLATE)
    try:
        packed = inflated.decompress(stream, size + 1)
    except zlib.error as error:
        raise damaged(f"its codes cannot be decompressed ({error})") from None
    if len(packed) != size or not inflated.eof or inflated.unused_data:
        raise damaged(f"its codes are not {size} bytes when decompressed")
    return np.frombuffer(packed, np.uint8), end
