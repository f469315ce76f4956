"""Oja's rule for a subspace, in blocks, with re-orthonormalisation."""

from __future__ import annotations

import torch
from torch import Tensor


def oja_step(basis: Tensor, rows: Tensor, rate: float, scale: Tensor) -> Tensor:
    """P ← orth(P + rate · P DᵀD / scale) (Oja 1982; blocks and QR as in Allen-Zhu and Li 2017).

    On rows of one distribution, with rates c/t (Σ η = ∞, Σ η² < ∞), P converges to the span of the top-k eigenvectors
    of their second moment, at a speed that the gap behind the k-th eigenvalue sets: without a gap it does not settle.

    Args:
        basis: P `[rank, in]`, orthonormal rows.
        rows: D `[n, in]`.
        rate: η.
        scale: In units of DᵀD, for which `mean_eigenvalue` is a choice.

    Returns:
        `[rank, in]`, orthonormal rows.
    """
    return orthonormal(basis + (rate / scale) * ((basis @ rows.T) @ rows))


def orthonormal(rows: Tensor) -> Tensor:
    """Orthonormal rows of the same span, by QR, each turned so that it has a positive part along its own."""
    q, r = torch.linalg.qr(rows.T)
    signs = torch.where(r.diagonal() < 0, -1.0, 1.0).to(q)
    turned_back: Tensor = (q * signs).T.contiguous()
    return turned_back


def mean_eigenvalue(rows: Tensor) -> Tensor:
    """Of DᵀD `[in, in]`: the squared norm per channel."""
    mean: Tensor = rows.square().sum() / rows.shape[1]
    return mean


def top_subspace(moment: Tensor, basis: Tensor) -> Tensor:
    """The top-k eigenvectors `[rank, in]` of DᵀD; where it has fewer, directions of the basis, as Oja leaves them.

    Args:
        moment: DᵀD `[in, in]`, float64, not 0.
        basis: P `[rank, in]`.
    """
    # far below any eigenvalue that matters, far above their rounding
    hint = 1e-9 * moment.diagonal().sum() * (basis.T @ basis).to(moment)
    vectors = torch.linalg.eigh(moment + hint).eigenvectors
    top: Tensor = vectors[:, -len(basis) :].T.flip(0).contiguous()
    return top


def turned(basis: Tensor, other: Tensor) -> Tensor:
    """How far apart two subspaces are: the root mean square of the sines of their principal angles, 0 to 1."""
    # from what is left, not as 1 − Σ cos²: half of the digits would be gone
    left = basis - (basis @ other.T) @ other
    sine: Tensor = left.norm() / len(basis) ** 0.5
    return sine
