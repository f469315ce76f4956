"""Compressed matrices as data: factors over one basis, or codes of a few bits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, eq=False)
class Factors:
    """Matrices W_i ≈ weights[i] · basis, all over one basis.

    Attributes:
        slots: One name for each matrix.
        basis: `[rank, in]`.
        weights: `[out_i, rank]` each.
    """

    slots: tuple[str, ...]
    basis: Tensor
    weights: tuple[Tensor, ...]

    @property
    def rank(self) -> int:
        """Rows of the basis."""
        return self.basis.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of basis and weights, in the dtype they have here."""
        return self.basis.nbytes + sum(weight.nbytes for weight in self.weights)

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """`(out, in)` of each matrix."""
        return tuple((weight.shape[0], self.basis.shape[1]) for weight in self.weights)


@dataclass(frozen=True, eq=False)
class Rounded:
    """A matrix W ≈ code · scale, one scale for each `block` numbers of a row; the last block may be shorter.

    Attributes:
        slots: The one name of the matrix.
        codes: 8 bits: int8 `[out, in]`. 4 bits: uint8 `[out, ceil(in / 2)]`, column 2i in the low half of byte i and
            column 2i + 1 in the high half, each code with 8 added.
        scales: fp16 `[out, ceil(in / block)]`.
        bits: Of a code.
        block: Numbers that share a scale.
        shape: `(out, in)`.
    """

    slots: tuple[str, ...]
    codes: Tensor
    scales: Tensor
    bits: int
    block: int
    shape: tuple[int, int]

    @classmethod
    def pack(cls, slot: str, codes: Tensor, scales: Tensor, *, bits: int, block: int) -> Rounded:
        """From one code for each number.

        Args:
            slot: Name of the matrix.
            codes: int8 `[out, in]`, from −127 to 127 or from −7 to 7.
            scales: `[out, ceil(in / block)]`, stored as fp16.
            bits: 8 or 4.
            block: Numbers that share a scale.
        """
        out, columns = codes.shape
        if bits == 4:
            halves = F.pad((codes + 8).to(torch.uint8), (0, columns % 2))
            codes = halves[:, ::2] | (halves[:, 1::2] << 4)
        return cls((slot,), codes, scales.to(torch.float16), bits, block, (out, columns))

    @property
    def rank(self) -> int:
        """The full one: rounding truncates nothing."""
        return min(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales."""
        return self.codes.nbytes + self.scales.nbytes

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """`(out, in)` of the one matrix."""
        return (self.shape,)

    def weight(self, dtype: torch.dtype) -> Tensor:
        """The matrix `[out, in]`, each number rounded to `dtype` once."""
        codes, (out, columns) = self._unpacked(), self.shape
        codes = F.pad(codes, (0, -columns % self.block)).view(out, -1, self.block)
        # Into `out` of the wanted dtype, so that a GPU makes no fp32 copy on the way.
        weight = torch.mul(codes, self.scales.float()[..., None], out=torch.empty_like(codes, dtype=dtype))
        return weight.view(out, -1)[:, :columns]

    def _unpacked(self) -> Tensor:
        """int8 `[out, in]`."""
        if self.bits == 8:
            return self.codes
        halves = torch.stack((self.codes & 15, self.codes >> 4), dim=-1).flatten(1)
        return halves[:, : self.shape[1]].view(torch.int8) - 8


Compressed = dict[tuple[int, tuple[str, ...]], Factors | Rounded]
"""Compressed matrices by layer and slots."""
