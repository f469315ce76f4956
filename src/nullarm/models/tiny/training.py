"""The plain training loop of the built-in models: their optimisers, and a rate that warms up, holds and decays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from nullarm.models.tasks.base import IGNORED
from nullarm.models.tiny.muon import Muon

Batch = tuple[torch.Tensor, torch.Tensor]
"""Token ids and labels, both `[row, position]`."""

GRADIENT_NORM = 1.0
LEAST_FACTOR = 0.03
BETAS = (0.9, 0.95)


@dataclass(frozen=True)
class Schedule:
    """Learning rate of steps 1 to `steps`: linear warm-up, flat, linear decay to 3 % over the last `decay_fraction`."""

    steps: int
    warmup_steps: int
    decay_fraction: float

    def factor(self, step: int) -> float:
        """Share of the peak at a step."""
        left = (self.steps - step) / (self.decay_fraction * self.steps)
        return min(1.0, step / self.warmup_steps, max(LEAST_FACTOR, left))


def muon_and_adamw(model: Any, *, learning_rate: float, weight_decay: float) -> list[torch.optim.Optimizer]:
    """Muon on the matrices of the blocks, AdamW without decay on embeddings, norms, biases: to learn from nothing."""
    named = list(model.named_parameters())
    matrices = [p for n, p in named if p.ndim == 2 and "embed" not in n and "lm_head" not in n]
    chosen = {id(p) for p in matrices}
    others = [p for _, p in named if id(p) not in chosen]
    return [
        Muon(matrices, learning_rate, weight_decay=weight_decay),
        torch.optim.AdamW(others, learning_rate, betas=BETAS, weight_decay=0.0, fused=True),
    ]


def adamw(model: Any, *, learning_rate: float, weight_decay: float) -> list[torch.optim.Optimizer]:
    """AdamW, with decay on matrices only: to change a model that has learned already."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [torch.optim.AdamW(groups, learning_rate, betas=BETAS, fused=True)]


class Trainer:
    """A model with its optimisers.

    Args:
        model: Causal LM, fp32.
        optimizers: Of all its parameters.
        learning_rate: Peak, for every optimiser.
    """

    def __init__(self, model: Any, optimizers: list[torch.optim.Optimizer], learning_rate: float) -> None:
        self.model, self.optimizers, self.learning_rate = model, optimizers, learning_rate

    def step(self, batch: Batch, factor: float) -> None:
        """One update at `factor` times the peak learning rate."""
        ids, labels = batch
        logits = self.model(input_ids=ids, use_cache=False).logits[:, :-1]
        loss = F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), GRADIENT_NORM)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = factor * self.learning_rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)


def padded(rows: Sequence[tuple[list[int], list[int]]]) -> Batch:
    """Ids and labels of unequal length as a batch padded on the right; no loss on the padding."""
    width = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([i + [0] * (width - len(i)) for i, _ in rows])
    return ids, torch.tensor([y + [IGNORED] * (width - len(y)) for _, y in rows])
