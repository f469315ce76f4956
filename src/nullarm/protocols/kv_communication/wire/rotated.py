"""Groups on even grids after a rotation that spreads outliers (QuaRot, arXiv 2404.00456)."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from nullarm.protocols.kv_communication.wire.ranges import AsymmetricScheme


class RotatedScheme(AsymmetricScheme):
    """As asymmetric, of rotated heads."""

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        """Rotated, then on grids."""
        return super().encode(rotate(x.float()))

    def decode(self, parts: tuple[Tensor, ...], out: Tensor) -> None:
        """From grids, then rotated back."""
        rotated = torch.empty(out.shape, dtype=torch.float32, device=out.device)
        super().decode(parts, rotated)
        out.copy_(rotate(rotated))


def rotate(x: Tensor) -> Tensor:
    """Orthonormal Hadamard rotation of the last axis, its own inverse.

    In blocks of the largest power of two that divides it.
    """
    block = x.shape[-1] & -x.shape[-1]
    rotated: Tensor = torch.mm(x.reshape(-1, block), _hadamard(block).to(x.device))
    return rotated.view(x.shape)


@cache
def _hadamard(size: int) -> Tensor:
    """Sylvester's, [size, size], divided by √size."""
    matrix: Tensor = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix.div_(size**0.5)
