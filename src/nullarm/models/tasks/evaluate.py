"""Scoring a model on a task, with the model as it was afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from nullarm.models.tasks.base import Item, ItemResult, Task


def evaluate(task: Task, model: Any, tokenizer: Any, items: Sequence[Item], *, batch_size: int) -> list[ItemResult]:
    """Results of the items, in their order; modes of the model's modules and gradients are left as they were.

    Args:
        task: Where the items are from.
        model: A model with the task's head, PEFT-wrapped or not.
        tokenizer: Its tokeniser.
        items: Items of one split.
        batch_size: Rows in a forward pass; results do not depend on it beyond rounding.
    """
    import torch

    with evaluation_mode(model), torch.no_grad():
        return task.score(model, tokenizer, items, batch_size=batch_size)


@contextmanager
def evaluation_mode(model: Any) -> Iterator[None]:
    """Put every module in evaluation mode, and back in the mode each one was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
