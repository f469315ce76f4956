"""How long a message will be, from its sizes alone: no torch, no numbers.

Written from the rules of docs/reference/wire-format.md, not from the code that writes; a test holds both together.
With n tokens of h heads of width d, N = h·n·d numbers, G = ⌈d / group⌉ and b bits, a stream takes, in bytes:

- codes: C = ⌈N·b/8⌉; for b = 3, ⌈N·2/8⌉ + ⌈N/8⌉;
- raw: N·4 or N·2;
- symmetric: 4 a scale (h, or 1) + C;
- asymmetric and rotated: 2·2·h·n·G + C;
- kivi, with w = min(window, n) and o = n − w: 2·h·w·d, + 2·2·h·⌈o/group⌉·d for keys or 2·2·h·o·G for values,
  + C of h·o·d numbers;
- nf4: 2·h·n·G + C;
- outlier: 6·k + 2·2·h·n·G + C, with k = max(1, ⌊share·N + ½⌋), N at most.

A message takes 44 + 4 a stream + ⌈tokens/8⌉ where its tokens are no range + the streams + 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import floor

from nullarm.protocols.kv_communication.geometry import Geometry, Half, Stream
from nullarm.protocols.kv_communication.wire.codec import Asymmetric, Codec, Kivi, NormalFloat, Outlier, Raw, Symmetric

_FIXED, _TABLE_ROW, _CHECKSUM = 44, 4, 4


def message_bytes(
    geometry: Geometry,
    codec: Codec,
    *,
    streams: Sequence[Stream],
    tokens: int,
    sent: int,
    contiguous: bool,
    bits: Mapping[Stream, int] | None = None,
) -> int | None:
    """Exact length of an encoded message, bytes.

    Args:
        geometry: Of the sharer.
        codec: How numbers are written.
        streams: Which are sent.
        tokens: Length of the sharer's sequence.
        sent: Tokens of it that are sent.
        contiguous: Are these a range?
        bits: Width of the codes by stream, instead of the codec's own.

    Returns:
        The length, or None where it depends on the numbers (entropy coding).
    """
    if not streams:
        return _FIXED + _CHECKSUM
    if getattr(codec, "entropy", False):
        return None
    own = getattr(codec, "bits", 0)
    body = sum(stream_bytes(geometry, codec, bits[s] if bits else own, sent, half=s.half) for s in streams)
    bitmap = 0 if contiguous or sent < 2 else _ceil(tokens, 8)
    return _FIXED + _TABLE_ROW * len(streams) + bitmap + body + _CHECKSUM


def stream_bytes(geometry: Geometry, codec: Codec, bits: int, n: int, *, half: Half = "key") -> int:
    """Share of one stream with n tokens, bytes, before any entropy coding; halves differ under KIVI only."""
    heads, width = geometry.heads, geometry.head_dim
    numbers = heads * n * width
    match codec:
        case Raw():
            return numbers * (4 if codec.dtype == "float32" else 2)
        case Symmetric():
            return 4 * (heads if codec.axis == "head" else 1) + _codes(numbers, bits)
        case Kivi():
            recent = min(codec.window, n)
            old = n - recent
            groups = _ceil(old, codec.group) * width if half == "key" else old * _ceil(width, codec.group)
            return 2 * heads * recent * width + 4 * heads * groups + _codes(heads * old * width, bits)
    groups = heads * n * _ceil(width, codec.group)
    match codec:
        case NormalFloat():
            return 2 * groups + _codes(numbers, 4)
        case Outlier():
            kept = min(numbers, max(1, floor(codec.share * numbers + 0.5)))
            return 6 * kept + 4 * groups + _codes(numbers, bits)
        case Asymmetric():
            return 4 * groups + _codes(numbers, bits)


def _codes(n: int, bits: int) -> int:
    return _ceil(2 * n, 8) + _ceil(n, 8) if bits == 3 else _ceil(bits * n, 8)


def _ceil(a: int, b: int) -> int:
    return -(-a // b)
