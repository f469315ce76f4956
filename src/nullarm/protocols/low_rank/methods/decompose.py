"""Factors of one matrix, or of several that share a basis: one decomposition, and every rank is a slice of it.

Every method truncates the singular value decomposition of M = D W C and undoes D and C. W `[Σ out, in]` is the stack of
the matrices, D scales the rows of each, and C Cᵀ says how inputs are weighed::

    method        D            C Cᵀ
    grc           1/‖W_i‖_F    1            K = MᵀM; raw: D = 1
    svd           1            1
    asvd          1            diag((mean |x|)^α)²
    svd_llm       1            XᵀX          the singular values beyond k are the output error that is left
    whitened_grc  1            XᵀX

With in < Σ out, V_k are the top eigenvectors of MᵀM: basis V_kᵀ C⁻¹, factors W_i C V_k. Otherwise U_k are those of
M Mᵀ = D W (C Cᵀ) Wᵀ D, and M_k = U_k U_kᵀ M gives basis U_kᵀ D W and factors D_i⁻¹ U_k: no C is needed, so none is
inverted, and W (XᵀX) Wᵀ, the Gram matrix of the outputs, will do where XᵀX is too large to be held.

All in float64, through the Gram matrix of the smaller side, whose rounding errors are about 1e-16 of the largest
eigenvalue. Singular values are its roots: those below some 1e-8 of the largest are lost in rounding (`torch.linalg.svd`
in float64 would have them down to 1e-16), and their vectors are arbitrary. What they carry of the output is as small.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from nullarm.errors import UsageError
from nullarm.protocols.low_rank.calibration.statistics import InputStatistics
from nullarm.protocols.low_rank.methods.settings import Grc, LowRank
from nullarm.protocols.low_rank.methods.stack import PART, Stack
from nullarm.protocols.low_rank.methods.weighing import Weighing, weighing

Truncated = tuple[Tensor, tuple[Tensor, ...]]
"""Basis `[rank, in]`, and a factor `[out_i, rank]` for each matrix: W_i' = factor @ basis."""


class Decomposition(ABC):
    """What every rank of a method is cut from.

    Attributes:
        singular_values: Of D W C, descending, float64, min(in, Σ out) of them.
    """

    singular_values: Tensor

    def __init__(self, gram: Tensor, weights: Sequence[Tensor]) -> None:
        values, self._vectors = torch.linalg.eigh(gram)
        self.singular_values = values.clamp(min=0).sqrt().flip(0)
        self._dtype = torch.promote_types(weights[0].dtype, torch.float32)

    def truncate(self, rank: int) -> Truncated:
        """The factors of one rank, in fp32, or in float64 where the matrices are.

        Raises:
            UsageError: There is no such rank.
        """
        if not 1 <= rank <= len(self.singular_values):
            raise UsageError("there is no such rank", value=rank, valid=f"1 to {len(self.singular_values)}")
        return self._factors(self._vectors[:, -rank:].flip(1))

    @abstractmethod
    def _factors(self, vectors: Tensor) -> Truncated:
        """Factors from the top eigenvectors `[side, rank]`, the greatest first."""


def decompose(method: LowRank, weights: Sequence[Tensor], inputs: InputStatistics | None = None) -> Decomposition:
    """Decompose one matrix, or the stack of those that are to share a basis.

    Args:
        method: One with a rank.
        weights: `[out_i, in]` each, of any floating dtype; they are kept, not copied.
        inputs: What they read, where the method needs it, on their device.

    Raises:
        UsageError: The method needs statistics that are not there.
        ModelError: The inputs cannot be whitened.
    """
    normalised = isinstance(method, Grc) and method.normalised
    matrices = [weight.detach() for weight in weights]
    stack = Stack(matrices, [_inverse_norm(weight) if normalised else 1.0 for weight in matrices])
    weighed = weighing(method, stack.width, inputs, matrices[0])
    if stack.width < stack.height:
        return _ByInputs(stack, weighed)
    return _ByOutputs(stack, weighed, orthonormal=isinstance(method, Grc))


class _ByInputs(Decomposition):
    """From MᵀM `[in, in]`: basis V_kᵀ C⁻¹, factors W_i C V_k."""

    def __init__(self, stack: Stack, weighed: Weighing) -> None:
        super().__init__(weighed.of_inputs(stack.gram()), stack.weights)
        self._stack, self._weighed = stack, weighed

    def _factors(self, vectors: Tensor) -> Truncated:
        basis, into = self._weighed.undone(vectors.T).to(self._dtype), self._weighed.times(vectors)
        return basis, tuple(self._projected(weight, into) for weight in self._stack.weights)

    def _projected(self, weight: Tensor, into: Tensor) -> Tensor:
        return torch.cat([(part.double() @ into).to(self._dtype) for part in torch.split(weight, PART)])


class _ByOutputs(Decomposition):
    """From M Mᵀ `[Σ out, Σ out]`: basis U_kᵀ D W, factors D_i⁻¹ U_k."""

    def __init__(self, stack: Stack, weighed: Weighing, *, orthonormal: bool) -> None:
        super().__init__(weighed.of_outputs(stack), stack.weights)
        self._stack, self._orthonormal = stack, orthonormal

    def _factors(self, vectors: Tensor) -> Truncated:
        basis = vectors.new_empty(vectors.shape[1], self._stack.width, dtype=self._dtype)
        for at, columns in self._stack.columns():
            basis[:, at] = vectors.T @ columns
        if self._orthonormal:
            rows, mixing = torch.linalg.qr(basis.T)
            basis, vectors = rows.T.contiguous(), vectors @ mixing.T.double()
        parts = torch.split(vectors, [len(weight) for weight in self._stack.weights])
        return basis, tuple((u / d).to(self._dtype) for u, d in zip(parts, self._stack.scales, strict=True))


def _inverse_norm(weight: Tensor) -> float:
    norm = float(torch.linalg.vector_norm(weight, dtype=torch.float64))
    return 1 / norm if norm else 1.0
