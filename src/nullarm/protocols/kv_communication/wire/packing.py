"""Codes of 1, 2, 3, 4 or 8 bits, several to a byte.

n codes of b = 1, 2, 4 or 8 bits take w = ⌈n·b/8⌉ bytes, a plane: code j lies in byte j mod w, at bit b·⌊j/w⌋. Codes
that follow one another thus lie in bytes that follow one another, and every step works on whole stretches of memory.
Codes of 3 bits are two planes, their lower two bits and then their third. Bits that no code uses are 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nullarm.protocols.kv_communication.wire.planes import PLANES, packed_bytes


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack codes uint8 […, n], each below 2^bits, into uint8 […, bytes]."""
    if bits == 8:
        return codes
    if codes.is_cuda:
        from nullarm.protocols.kv_communication.wire.kernels import pack_codes

        return pack_codes(codes, bits)
    if bits != 3:
        return _pack_plane(codes, bits)
    return torch.cat([_pack_plane((codes >> first) & (2**width - 1), width) for first, width in PLANES[3]], -1)


def unpack(packed: Tensor, bits: int, n: int) -> Tensor:
    """The n codes uint8 […, n] that uint8 […, bytes] hold."""
    if bits == 8:
        return packed
    if packed.is_cuda:
        from nullarm.protocols.kv_communication.wire.kernels import unpack_codes

        return unpack_codes(packed, bits, n)
    if bits != 3:
        return _unpack_plane(packed, bits, n)
    lower, upper = packed.tensor_split([packed_bytes(n, 2)], -1)
    return _unpack_plane(lower, 2, n).bitwise_or_(_unpack_plane(upper, 1, n) << 2)


def _pack_plane(codes: Tensor, width: int) -> Tensor:
    first, *others = _stretches(codes, packed_bytes(codes.shape[-1], width))
    packed = first.clone()
    for k, stretch in enumerate(others, 1):
        packed[..., : stretch.shape[-1]] |= stretch << (width * k)
    return packed


def _unpack_plane(packed: Tensor, width: int, n: int) -> Tensor:
    codes, mask = packed.new_empty((*packed.shape[:-1], n)), 2**width - 1
    for k, stretch in enumerate(_stretches(codes, packed.shape[-1])):
        torch.bitwise_and(packed[..., : stretch.shape[-1]] >> (width * k), mask, out=stretch)
    return codes


def _stretches(codes: Tensor, length: int) -> list[Tensor]:
    """Codes that have the same place in their bytes."""
    return [codes[..., start : start + length] for start in range(0, max(1, codes.shape[-1]), max(1, length))]
