"""What factors lose of the matrices they stand for. Relative Frobenius norms over all matrices of a group."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from nullarm.protocols.low_rank.calibration.statistics import InputStatistics
from nullarm.protocols.low_rank.methods.stack import PART


def weight_error(weights: Sequence[Tensor], basis: Tensor | None, factors: Sequence[Tensor]) -> float:
    """‖W − W'‖_F / ‖W‖_F.

    Args:
        weights: `[out_i, in]` each.
        basis: `[rank, in]`; None where the factors are matrices in full.
        factors: `[out_i, rank]` each, or `[out_i, in]`.
    """
    return _relative(weights, basis, factors, lambda rows: rows.square().sum())


def output_error(
    weights: Sequence[Tensor], basis: Tensor | None, factors: Sequence[Tensor], inputs: InputStatistics
) -> float:
    """‖X(W − W')ᵀ‖_F / ‖X Wᵀ‖_F, over all inputs where their Gram matrix is held, else over the sample of them.

    Args:
        weights: `[out_i, in]` each.
        basis: `[rank, in]`; None where the factors are matrices in full.
        factors: `[out_i, rank]` each, or `[out_i, in]`.
        inputs: What the matrices read.
    """
    gram = inputs.gram
    if gram is not None:
        return _relative(weights, basis, factors, lambda rows: ((rows @ gram) * rows).sum())
    sample = inputs.sample.double()
    return _relative(weights, basis, factors, lambda rows: (sample @ rows.T).square().sum())


def _relative(
    weights: Sequence[Tensor], basis: Tensor | None, factors: Sequence[Tensor], energy: Callable[[Tensor], Tensor]
) -> float:
    """Root of the energy of the difference over that of the matrices, from some rows at a time, in float64."""
    lost = whole = weights[0].new_zeros((), dtype=torch.float64)
    read = None if basis is None else basis.detach().double()
    for weight, factor in zip(weights, factors, strict=True):
        for rows, kept in zip(torch.split(weight.detach(), PART), torch.split(factor.detach(), PART), strict=True):
            exact, made = rows.double(), kept.double()
            lost = lost + energy(exact - (made if read is None else made @ read))
            whole = whole + energy(exact)
    return float((lost.clamp(min=0) / whole).sqrt())
