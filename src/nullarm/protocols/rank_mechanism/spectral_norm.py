"""The largest singular value of a big matrix, to a stated tolerance.

Golub–Kahan–Lanczos bidiagonalisation (Golub and Kahan 1965) from a random start: the power method that remembers where
it has been. A dense SVD of every matrix of a 7B model would take hours.

The number of steps is fixed beforehand, by a bound that holds for every matrix. Stopping when the residual is small
would be faster, and wrong now and then: a start vector that happens to be nearly orthogonal to the largest direction
converges to the second largest first, with a residual as small as one likes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

TOLERANCE = 1e-2
"""Relative error of ‖W‖₂ that is exceeded with probability `FAILURE` at most, over start vectors."""

FAILURE = 1e-6

_SEED = 0


def spectral_norm(weight: Tensor, *, tolerance: float = TOLERANCE, generator: torch.Generator | None = None) -> float:
    """‖W‖₂ from below: at most ‖W‖₂ (but for rounding), at least (1 − tolerance)‖W‖₂; most often far nearer.

    Args:
        weight: `[rows, columns]`, a floating type; computed in float32, or in float64 if stored so.
        tolerance: Relative error, in (0, 1), exceeded with probability `FAILURE` at most.
        generator: Source of the start vector; a fixed one by default, so that a weight always has the same norm.
    """
    w = weight if weight.dtype == torch.float64 else weight.float()
    w = w if w.shape[0] >= w.shape[1] else w.mT  # so that as many steps as columns exhaust the space
    rows, columns = w.shape
    steps = lanczos_steps(columns, tolerance)
    generator = torch.Generator().manual_seed(_SEED) if generator is None else generator
    right = torch.zeros(steps, columns, dtype=w.dtype)  # orthonormal rows v_k
    left = torch.zeros(steps, rows, dtype=w.dtype)  # orthonormal rows u_k, with W Vᵀ = Uᵀ(bidiagonal)
    bidiagonal = torch.zeros(steps, steps, dtype=torch.float64)
    v, beta = _orthogonal(torch.randn(columns, generator=generator, dtype=w.dtype), right[:0])
    for k in range(steps):
        if beta == 0.0:
            break
        right[k] = v / beta
        u, alpha = _orthogonal(w @ right[k], left[:k])
        bidiagonal[k, k] = alpha
        if k > 0:
            bidiagonal[k - 1, k] = beta
        if alpha == 0.0:
            break
        left[k] = u / alpha
        v, beta = _orthogonal(w.mT @ left[k], right[: k + 1])
    return float(torch.linalg.svdvals(bidiagonal)[0])


def lanczos_steps(columns: int, tolerance: float) -> int:
    """Steps after which σ is within `tolerance` with probability 1 − `FAILURE`, whatever the matrix.

    Kuczyński and Woźniakowski (1992), theorem 4.2: after k steps from a start uniform on the sphere the largest
    eigenvalue of a positive semi-definite n × n matrix (here WᵀW) has a relative error above ε with probability at most
    1.648 √n exp(−√ε (2k − 1)).
    """
    epsilon = tolerance * (2.0 - tolerance)  # of σ²
    steps = (math.log(1.648 * math.sqrt(columns) / FAILURE) / math.sqrt(epsilon) + 1.0) / 2.0
    return min(columns, math.ceil(steps))


def _orthogonal(vector: Tensor, basis: Tensor) -> tuple[Tensor, float]:
    """The part of `vector` orthogonal to the rows of `basis`, and its length."""
    for _ in range(2):  # the second time removes what rounding left of the first
        vector = vector - basis.mT @ (basis @ vector)
    return vector, float(torch.linalg.vector_norm(vector))
