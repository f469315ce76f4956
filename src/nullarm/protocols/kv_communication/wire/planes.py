"""How codes of each width are cut into planes, and the bytes that they take. No torch; the layout is in `packing`."""

from __future__ import annotations

PLANES: dict[int, tuple[tuple[int, int], ...]] = {
    1: ((0, 1),),
    2: ((0, 2),),
    3: ((0, 2), (2, 1)),
    4: ((0, 4),),
    8: ((0, 8),),
}
"""Planes by the codes' width: lowest bit of the code that is in it, and how many."""


def packed_bytes(n: int, bits: int) -> int:
    """Bytes that n codes take."""
    return sum(-(-n * width // 8) for _, width in PLANES[bits])
