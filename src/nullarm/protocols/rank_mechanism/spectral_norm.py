"""The largest singular value of a big matrix, to a stated tolerance.

Golub–Kahan–Lanczos bidiagonalisation (Golub and Kahan 1965) from a random start: the power method that remembers where
it has been. A dense SVD of every matrix of a 7B model would take hours.
"""

from __future__ import annotations

import torch
from torch import Tensor

TOLERANCE = 1e-3
"""Relative residual at which ‖W‖₂ is accepted; see `spectral_norm`."""

_SEED = 0


def spectral_norm(weight: Tensor, *, tolerance: float = TOLERANCE, generator: torch.Generator | None = None) -> float:
    """‖W‖₂, within a relative `tolerance`.

    Stops at a singular triple (σ, u, v) with ‖Wᵀu − σv‖ ≤ tolerance · σ. Then σ never exceeds ‖W‖₂ and lies within
    tolerance · σ of a singular value, which, from a random start, is the largest (or one as near to it as that); the
    error itself is of the order of the tolerance squared.

    Args:
        weight: `[rows, columns]`, a floating type; computed in float32, or in float64 if stored so.
        tolerance: Bound on the relative residual.
        generator: Source of the start vector; a fixed one by default, so that a weight always has the same norm.
    """
    w = weight if weight.dtype == torch.float64 else weight.float()
    w = w if w.shape[0] >= w.shape[1] else w.mT  # so that k = columns is the whole space
    generator = torch.Generator().manual_seed(_SEED) if generator is None else generator
    v = torch.randn(w.shape[1], generator=generator, dtype=w.dtype)
    right = (v / torch.linalg.vector_norm(v))[None]  # [k, columns], orthonormal rows v_1 … v_k
    left = torch.empty(0, w.shape[0], dtype=w.dtype)  # [k - 1, rows], orthonormal rows u_1 … u_{k-1}
    bidiagonal = torch.zeros(0, 0, dtype=torch.float64)  # uᵢᵀ W vⱼ
    beta = 0.0
    top = 0.0
    while True:
        u, alpha = _normalised(w @ right[-1], left)
        if alpha == 0.0:
            return top
        left = torch.cat((left, u[None]))
        bidiagonal = _extended(bidiagonal, alpha, beta)
        v, beta = _normalised(w.mT @ u, right)
        triples = torch.linalg.svd(bidiagonal)
        top = float(triples.S[0])
        # Wᵀ(Uᵀx) − σ(Vᵀy) = β xₖ v_{k+1} for the triple (σ, x, y) of the bidiagonal matrix
        if beta * abs(float(triples.U[-1, 0])) <= tolerance * top or len(right) == w.shape[1]:
            return top
        right = torch.cat((right, v[None]))


def _normalised(vector: Tensor, basis: Tensor) -> tuple[Tensor, float]:
    """The part of `vector` orthogonal to the rows of `basis`, as a direction and its length."""
    for _ in range(2):  # the second time removes what rounding left of the first
        vector = vector - basis.mT @ (basis @ vector)
    length = float(torch.linalg.vector_norm(vector))
    return (vector / length if length > 0.0 else vector), length


def _extended(bidiagonal: Tensor, alpha: float, beta: float) -> Tensor:
    """One more column: α on the diagonal, β above it."""
    size = len(bidiagonal) + 1
    extended = torch.zeros(size, size, dtype=torch.float64)
    extended[:-1, :-1] = bidiagonal
    extended[-1, -1] = alpha
    if size > 1:
        extended[-2, -1] = beta
    return extended
