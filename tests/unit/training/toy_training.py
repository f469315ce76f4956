"""A model small enough to train hundreds of times in a test, with dropout, and its data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from nullarm.training.batches import Batches
from nullarm.training.loop import FitResult, fit
from nullarm.training.settings import TrainSettings

VOCABULARY = 23


@dataclass(frozen=True)
class Item:
    ids: list[int]
    labels: list[int] | list[float]


class Toy(torch.nn.Module):
    """Next-token model of one hidden layer over a frozen bf16 embedding."""

    def __init__(self, dropout: float = 0.2) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        table = torch.randn(VOCABULARY, 8, generator=generator).to(torch.bfloat16)
        self.embedding = torch.nn.Embedding(VOCABULARY, 8, _weight=table, _freeze=True)
        self.hidden = torch.nn.Linear(8, 12)
        self.dropout = torch.nn.Dropout(dropout)
        self.head = torch.nn.Linear(12, VOCABULARY)
        with torch.no_grad():
            for parameter in self.parameters():
                if parameter.requires_grad:
                    parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor) -> SimpleNamespace:
        del attention_mask
        hidden = self.dropout(torch.tanh(self.hidden(self.embedding(input_ids).float())))
        logits = self.head(hidden)[:, :-1].flatten(0, 1)
        return SimpleNamespace(loss=torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten()))


def toy_items(count: int = 40) -> list[Item]:
    rng = np.random.default_rng(5)
    items = []
    for _ in range(count):
        ids = rng.integers(1, VOCABULARY, rng.integers(4, 12)).tolist()
        items.append(Item(ids, [-100] * 2 + ids[2:]))
    return items


def toy_settings(**changes: Any) -> TrainSettings:
    knobs: dict[str, Any] = {"steps": 6, "batch_size": 8, "learning_rate": 0.05, "checkpoint_every": 2}
    return TrainSettings(**{**knobs, **changes})


def never() -> bool:
    return False


def stop_after(steps: int) -> Callable[[], bool]:
    """True at the (steps + 1)-th time of asking."""
    asked = iter(range(10**9))
    return lambda: next(asked) >= steps


def toy_fit(directory: Path, model: torch.nn.Module, settings: TrainSettings, **changes: Any) -> FitResult:
    batches = Batches(toy_items(), batch_size=settings.batch_size, seed=3, pad_id=0)
    arguments: dict[str, Any] = {"fingerprint": "cell-1", "seed": 7, "should_stop": never}
    return fit(model, batches, settings, directory=directory, **{**arguments, **changes})


def weights(model: torch.nn.Module) -> dict[str, list[float]]:
    return {name: parameter.flatten().tolist() for name, parameter in model.named_parameters()}
