"""How a method weighs the inputs of a matrix: a factor C of the metric C Cᵀ, by which M = W C is truncated, not W."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from nullarm.errors import ModelError, UsageError
from nullarm.protocols.low_rank.calibration.statistics import InputStatistics
from nullarm.protocols.low_rank.methods.settings import Asvd, Grc, LowRank, Svd
from nullarm.protocols.low_rank.methods.stack import Stack

SMALLEST_SCALE = 1e-6
"""Of a channel that is never used, × the largest: S has to be undone."""


class Weighing(ABC):
    """C, `[in, in]`. All in float64."""

    @abstractmethod
    def of_outputs(self, stack: Stack) -> Tensor:
        """W C Cᵀ Wᵀ `[Σ out, Σ out]`."""

    @abstractmethod
    def of_inputs(self, gram: Tensor) -> Tensor:
        """Cᵀ K C, for K = WᵀW `[in, in]`."""

    @abstractmethod
    def times(self, columns: Tensor) -> Tensor:
        """C V, for V `[in, k]`."""

    @abstractmethod
    def undone(self, rows: Tensor) -> Tensor:
        """R C⁻¹, for R `[k, in]`."""


@dataclass(frozen=True)
class Scales(Weighing):
    """C = diag(scales), scales `[in]`."""

    scales: Tensor

    def of_outputs(self, stack: Stack) -> Tensor:
        """W C Cᵀ Wᵀ, from some columns of W at a time."""
        total = self.scales.new_zeros(stack.height, stack.height)
        for at, columns in stack.columns():
            scaled = columns * self.scales[at]
            total += scaled @ scaled.T
        return total

    def of_inputs(self, gram: Tensor) -> Tensor:
        """Cᵀ K C."""
        return gram * self.scales * self.scales[:, None]

    def times(self, columns: Tensor) -> Tensor:
        """C V."""
        return columns * self.scales[:, None]

    def undone(self, rows: Tensor) -> Tensor:
        """R C⁻¹."""
        return rows / self.scales


@dataclass(frozen=True)
class Whitening(Weighing):
    """C is the lower Cholesky factor of XᵀX + λI, λ = ridge × mean diagonal; without an inverse there is no λ either.

    Attributes:
        inputs: Has `gram`, or `output_gram` of the only matrix.
        ridge: λ, relative.
    """

    inputs: InputStatistics
    ridge: float

    def of_outputs(self, stack: Stack) -> Tensor:
        """W XᵀX Wᵀ."""
        if self.inputs.output_gram is not None:
            return self.inputs.output_gram
        weights = torch.cat(list(stack.rows()))  # no wider than a Gram matrix that is held
        return weights @ self._gram @ weights.T

    def of_inputs(self, gram: Tensor) -> Tensor:
        """Cᵀ K C."""
        return self._root.T @ gram @ self._root

    def times(self, columns: Tensor) -> Tensor:
        """C V."""
        return self._root @ columns

    def undone(self, rows: Tensor) -> Tensor:
        """R C⁻¹."""
        undone: Tensor = torch.linalg.solve_triangular(self._root, rows, upper=False, left=False)
        return undone

    @property
    def _gram(self) -> Tensor:
        if self.inputs.gram is None:
            raise UsageError(
                "whitening needs the Gram matrix of the inputs", value=None, valid="`InputStatistics.gram`"
            )
        return self.inputs.gram

    @cached_property
    def _root(self) -> Tensor:
        gram = self._gram.clone()
        gram.diagonal().add_(self.ridge * gram.diagonal().mean())
        root: Tensor
        root, failed = torch.linalg.cholesky_ex(gram)
        if failed:
            raise ModelError(
                "XᵀX of the calibration text is not positive definite, ridge included",
                value=self.ridge,
                valid="a larger `ridge`, or a text on which the inputs are not all zero",
            )
        return root


def weighing(method: LowRank, width: int, inputs: InputStatistics | None, like: Tensor) -> Weighing:
    """How a method weighs inputs of so many channels.

    Raises:
        UsageError: The method needs statistics, and there are none.
    """
    if isinstance(method, Grc | Svd):
        return Scales(torch.ones(width, dtype=torch.float64, device=like.device))
    if inputs is None:
        raise UsageError(f"{method.kind} needs statistics of the inputs", value=None, valid="`calibration.collect`")
    if isinstance(method, Asvd):
        mean = inputs.mean_abs.double()
        return Scales(mean.clamp(min=SMALLEST_SCALE * float(mean.max())) ** method.alpha)
    return Whitening(inputs, method.ridge)
