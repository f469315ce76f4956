"""Packing and unpacking on a GPU, with the arithmetic of `affine` in the same pass. Imported for CUDA tensors only.

The layout is that of `packing`. A program works on a stretch of bytes of one row, which are as many stretches of
numbers as a byte holds codes, so that every load and store is of neighbours.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from nullarm.protocols.kv_communication.wire.planes import PLANES, packed_bytes

_BLOCK = 1024
_TO_INTEGER = tl.constexpr(12582912.0)  # 1.5 · 2²³: what is added to it is rounded, half to even, as torch.round does


@triton.jit  # type: ignore[untyped-decorator]
def _group_of(at, start, size, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Group of each number: by a constant where groups are small, else by the one border that a stretch can cross."""
    if SIZE > 0:
        return at // SIZE
    first = start // size
    return first + (at - first * size >= size).to(tl.int32)


@triton.jit  # type: ignore[untyped-decorator]
def _pack(  # type: ignore[no-untyped-def]
    numbers,
    offset,
    step,
    packed,
    n,
    groups,
    size,
    row_bytes,
    plane_start,
    width,
    SIZE: tl.constexpr,
    SHIFT: tl.constexpr,
    TOP: tl.constexpr,
    FIRST: tl.constexpr,
    BITS: tl.constexpr,
    AFFINE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row, start = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK
    byte = start + tl.arange(0, BLOCK)
    value = tl.zeros((BLOCK,), tl.int32)
    for k in tl.static_range(8 // BITS):
        at = byte + k * width
        inside = (byte < width) & (at < n)
        x = tl.load(numbers + row * n + at, mask=inside, other=0)
        if AFFINE:
            group = row * groups + _group_of(at, start + k * width, size, SIZE)
            x = x.to(tl.float32) - tl.load(offset + group, mask=inside, other=0.0)
            x = tl.div_rn(x, tl.load(step + group, mask=inside, other=1.0))
            x = (x + _TO_INTEGER) - _TO_INTEGER + SHIFT
            x = tl.minimum(tl.maximum(x, 0.0), TOP)
        code = (x.to(tl.int32) >> FIRST) & ((1 << BITS) - 1)
        value |= tl.where(inside, code, 0) << (k * BITS)
    tl.store(packed + row * row_bytes + plane_start + byte, value.to(tl.uint8), mask=byte < width)


@triton.jit  # type: ignore[untyped-decorator]
def _unpack(  # type: ignore[no-untyped-def]
    packed,
    offset,
    step,
    numbers,
    n,
    groups,
    size,
    row_bytes,
    width,
    second_width,
    SIZE: tl.constexpr,
    SHIFT: tl.constexpr,
    BITS: tl.constexpr,
    SECOND_FIRST: tl.constexpr,
    SECOND_BITS: tl.constexpr,
    AFFINE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row, start = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK
    byte = start + tl.arange(0, BLOCK)
    value = tl.load(packed + row * row_bytes + byte, mask=byte < width, other=0).to(tl.int32)
    for k in tl.static_range(8 // BITS):
        at = byte + k * width
        inside = (byte < width) & (at < n)
        code = (value >> (k * BITS)) & ((1 << BITS) - 1)
        if SECOND_BITS > 0:
            more = tl.load(packed + row * row_bytes + width + at % second_width, mask=inside, other=0).to(tl.int32)
            more = (more >> ((at // second_width) * SECOND_BITS)) & ((1 << SECOND_BITS) - 1)
            code |= more << SECOND_FIRST
        if AFFINE:
            group = row * groups + _group_of(at, start + k * width, size, SIZE)
            x = (code - SHIFT).to(tl.float32) * tl.load(step + group, mask=inside, other=0.0)
            x += tl.load(offset + group, mask=inside, other=0.0)
            tl.store(numbers + row * n + at, x.to(numbers.dtype.element_ty), mask=inside)
        else:
            tl.store(numbers + row * n + at, code.to(tl.uint8), mask=inside)


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """`packing.pack`."""
    return _packed(codes.contiguous(), None, None, 0, bits)


def unpack_codes(packed: Tensor, bits: int, n: int) -> Tensor:
    """`packing.unpack`."""
    codes = packed.new_empty((*packed.shape[:-1], n))
    _unpacked(packed.contiguous(), None, None, 0, bits, codes)
    return codes


def quantise(x: Tensor, offset: Tensor, step: Tensor, shift: int, bits: int) -> Tensor:
    """Pack round((x − offset)/step) + shift into [rows, bytes].

    Args:
        x: Numbers [rows, n] of any floating dtype.
        offset: fp32 [rows, groups], for groups of n/groups neighbours.
        step: fp32 [rows, groups].
        shift: Code of 0.
        bits: Width of a code.
    """
    return _packed(x.contiguous(), offset.contiguous(), step.contiguous(), shift, bits)


def dequantise(packed: Tensor, offset: Tensor, step: Tensor, shift: int, bits: int, out: Tensor) -> None:
    """Write (code − shift)·step + offset into `out` [rows, n], of any floating dtype; arguments as of `quantise`."""
    _unpacked(packed.contiguous(), offset.contiguous(), step.contiguous(), shift, bits, out)


def _packed(x: Tensor, offset: Tensor | None, step: Tensor | None, shift: int, bits: int) -> Tensor:
    n = x.shape[-1]
    row_bytes = packed_bytes(n, bits)
    packed = torch.empty((*x.shape[:-1], row_bytes), dtype=torch.uint8, device=x.device)
    if not packed.numel():
        return packed
    start = 0
    for first, plane_bits in PLANES[bits]:
        width = -(-n * plane_bits // 8)
        groups, size, constant = _grouping(n, offset)
        _pack[_grid(packed, width)](
            x, offset, step, packed, n, groups, size, row_bytes, start, width,
            SIZE=constant, SHIFT=shift, TOP=2.0**bits - 1, FIRST=first, BITS=plane_bits,
            AFFINE=offset is not None, BLOCK=_BLOCK,
        )  # fmt: skip
        start += width
    return packed


def _unpacked(packed: Tensor, offset: Tensor | None, step: Tensor | None, shift: int, bits: int, out: Tensor) -> None:
    if not out.numel():
        return
    n, ((_, plane_bits), *second) = out.shape[-1], PLANES[bits]
    width, (second_first, second_bits) = -(-n * plane_bits // 8), (second or [(0, 0)])[0]
    groups, size, constant = _grouping(n, offset)
    _unpack[_grid(packed, width)](
        packed, offset, step, out, n, groups, size, packed.shape[-1], width, max(1, -(-n * second_bits // 8)),
        SIZE=constant, SHIFT=shift, BITS=plane_bits, SECOND_FIRST=second_first, SECOND_BITS=second_bits,
        AFFINE=offset is not None, BLOCK=_BLOCK,
    )  # fmt: skip


def _grouping(n: int, offset: Tensor | None) -> tuple[int, int, int]:
    """Groups of a row, numbers of a group, and the latter as a constant of the kernel where it is below a stretch."""
    groups = 1 if offset is None else offset.shape[-1]
    size = n // groups
    return groups, size, size if size < _BLOCK else 0


def _grid(packed: Tensor, width: int) -> Any:
    return packed.numel() // packed.shape[-1], triton.cdiv(width, _BLOCK)
