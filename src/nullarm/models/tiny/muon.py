"""Muon with Newton–Schulz in fp32, batched over matrices of equal shape (CPU steps of tiny models are overhead)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch

ITERATIONS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""The quintic of Jordan et al. (2024), "Muon: an optimizer for hidden layers in neural networks"."""


class Muon(torch.optim.Optimizer):
    """Momentum orthogonalised by Newton–Schulz, scaled to the update size of AdamW.

    Every parameter must be a matrix. The scale `0.2 · sqrt(max(rows, columns))` is that of Liu et al. (2025), "Muon is
    scalable for LLM training", so one learning rate serves Muon and AdamW.

    Args:
        parameters: Matrices.
        lr: Learning rate.
        momentum: Of the gradient average; the update is Nesterov's.
        weight_decay: Decoupled.
    """

    def __init__(
        self,
        parameters: Iterable[torch.nn.Parameter],
        lr: float,
        *,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[tuple[int, ...], list[tuple[torch.Tensor, torch.Tensor]]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    update = self._nesterov(parameter, group["momentum"])
                    by_shape[tuple(update.shape)].append((parameter, update))
            for shape, pairs in by_shape.items():
                step_size = 0.2 * max(shape) ** 0.5 * group["lr"]
                orthogonal = orthogonalize(torch.stack([update for _, update in pairs]))
                for (parameter, _), update in zip(pairs, orthogonal, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-step_size)

    def _nesterov(self, parameter: torch.Tensor, momentum: float) -> torch.Tensor:
        state = self.state[parameter]
        if not state:
            state["average"] = torch.zeros_like(parameter)
        gradient = parameter.grad
        if gradient is None:
            raise RuntimeError("a parameter without a gradient has no update")
        state["average"].lerp_(gradient, 1 - momentum)
        return gradient.lerp(state["average"], momentum)


def orthogonalize(matrices: torch.Tensor) -> torch.Tensor:
    """Push the singular values of each matrix towards 1.

    Args:
        matrices: `[matrix, row, column]`, fp32.

    Returns:
        Same shape; singular values within roughly 0.7 to 1.2.
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
