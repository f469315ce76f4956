"""One group of matrices while its basis is adapted."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nullarm.protocols.low_rank.factored.factors import Factors
from nullarm.protocols.low_rank.online.oja import mean_eigenvalue, oja_step, top_subspace, turned
from nullarm.protocols.low_rank.online.settings import OnlineSettings


class AdaptedGroup:
    """A basis that moves, and the factors that follow it. The basis is kept in fp32 at least: η shrinks.

    Args:
        factors: To begin with: a projection of the weights.
        weights: Of the original, `[out_i, in]` each.
        settings: How.

    Attributes:
        factors: As they are now; while nothing has moved, those given.
    """

    def __init__(self, factors: Factors, weights: Sequence[Tensor], settings: OnlineSettings) -> None:
        self.factors = factors
        self._weights, self._settings = weights, settings
        self._basis = self._start = at_least_fp32(factors.basis.to(weights[0].device))
        self._energy = torch.zeros((), device=self._basis.device)
        self._moment: Tensor | None = None

    @property
    def is_projection(self) -> bool:
        """Whether the factors are those of W PᵀP, P with orthonormal rows, up to rounding."""
        close = max(4 * torch.finfo(self.factors.basis.dtype).eps, 1e-5)
        gram = self._basis @ self._basis.T
        apart = [(gram - torch.eye(len(gram)).to(gram)).norm() / gram.norm()]
        for weight, factor in zip(self._weights, self.factors.weights, strict=True):
            projected = at_least_fp32(weight) @ self._basis.T
            apart.append((projected - factor.to(projected)).norm() / projected.norm())
        return bool(torch.stack(apart).max() <= close)

    @property
    def turned(self) -> float:
        """Root mean square of the sines of the principal angles between the basis and what it was at the start."""
        return float(turned(self._basis, self._start))

    def learn(self, drift: Tensor, block: int, generator: torch.Generator) -> None:
        """Take one block, its number from 1, with its drift `[tokens, in]`."""
        self._energy = self._energy + mean_eigenvalue(drift)
        if self._settings.direction == "frozen" or not self._energy:
            return
        if self._settings.direction == "offline_refit":
            self._gather(drift, block)
            return
        rows = drift if self._settings.direction == "difference" else _random_like(drift, generator)
        self._move(oja_step(self._basis, rows, self._settings.c / block, self._energy / block))

    def _gather(self, drift: Tensor, block: int) -> None:
        """Sum up the second moment, and move to its top subspace after the last block."""
        moment = (drift.T @ drift).double()
        self._moment = moment if self._moment is None else self._moment.add_(moment)
        if block == self._settings.blocks:
            self._move(top_subspace(self._moment, self._basis).to(self._basis))

    def _move(self, basis: Tensor) -> None:
        self._basis, old = basis, self.factors
        projected = (at_least_fp32(weight) @ basis.T for weight in self._weights)
        factors = tuple(new.to(factor) for new, factor in zip(projected, old.weights, strict=True))
        self.factors = Factors(old.slots, basis.to(old.basis), factors)


def at_least_fp32(tensor: Tensor) -> Tensor:
    """The tensor, without gradient, in its dtype or fp32, whichever is wider."""
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))


def _random_like(drift: Tensor, generator: torch.Generator) -> Tensor:
    """Rows of random directions, of the same norm altogether."""
    rows = torch.randn(drift.shape, generator=generator, device=generator.device).to(drift)
    scaled: Tensor = rows * (drift.norm() / rows.norm())
    return scaled
