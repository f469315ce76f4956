"""The planted teacher: the base with its known updates, what it would say, and how close a student comes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Protocol

import torch

from nullarm.models.hashing import settings_hash
from nullarm.models.load import load_causal_lm
from nullarm.models.tasks.base import IGNORED, Encoded, Item, ItemResult

DRAW_BATCH = 512


class Plan(Protocol):
    """What a teacher is made from; `nullarm.models.tasks.planted.Planted` has it."""

    @property
    def base(self) -> str:
        """Reference of the model that is updated."""

    @property
    def seed(self) -> int:
        """Of the updates and of the draws."""

    @property
    def update_size(self) -> float:
        """Norm of each update over that of its weight."""

    def ranks(self) -> dict[str, int]:
        """Rank of the update of every target module."""

    def __hash__(self) -> int: ...


@lru_cache(maxsize=2)
def teacher(task: Plan) -> Any:
    """The teacher of these settings, on the CPU, in evaluation mode. Do not change it."""
    model, _ = load_causal_lm(task.base)
    generator = torch.Generator().manual_seed(task.seed)
    with torch.no_grad():
        for name, rank in task.ranks().items():
            weight = model.get_submodule(name).weight
            weight += planted_update(weight, rank, task.update_size, generator)
    return model.requires_grad_(False)


def planted_update(weight: torch.Tensor, rank: int, size: float, generator: torch.Generator) -> torch.Tensor:
    """A random matrix of exactly this rank, its non-zero singular values equal.

    Args:
        weight: `[out, in]`; gives shape and norm.
        rank: 0 gives zeros.
        size: Frobenius norm of the result over that of `weight`; not of its rank, so that rank is all that differs.
        generator: Of the singular vectors.
    """
    if rank == 0:
        return torch.zeros_like(weight)
    left, right = (torch.randn(n, rank, generator=generator, dtype=torch.float64) for n in weight.shape)
    direction: torch.Tensor = torch.linalg.qr(left)[0] @ torch.linalg.qr(right)[0].T
    return direction.mul(size * float(weight.norm()) / rank**0.5).to(weight.dtype)


def teacher_draws(task: Plan, tokenizer: Any, items: Sequence[Item]) -> list[Encoded]:
    """Training examples whose label after each word is drawn from the teacher.

    A draw depends on the seed and the item alone, not on its neighbours.
    """
    rows = _rows(tokenizer, items)
    probabilities = torch.cat([_logits(teacher(task), part).softmax(-1) for part in torch.split(rows, DRAW_BATCH)])
    encoded = []
    for item, row, distribution in zip(items, rows.tolist(), probabilities, strict=True):
        generator = torch.Generator().manual_seed(_item_seed(task.seed, item.id))
        drawn = torch.multinomial(distribution, 1, generator=generator).flatten().tolist()
        encoded.append(Encoded([*row, drawn[-1]], [IGNORED, *drawn]))
    return encoded


def compare(task: Plan, model: Any, tokenizer: Any, items: Sequence[Item], *, batch_size: int) -> list[ItemResult]:
    """Results of the items, in order."""
    guide = teacher(task)
    results: list[ItemResult] = []
    for start in range(0, len(items), batch_size):
        part = items[start : start + batch_size]
        rows = _rows(tokenizer, part)
        wanted = _logits(guide, rows).log_softmax(-1)
        found = _logits(model, rows.to(model.device)).float().cpu().log_softmax(-1)
        divergence = (wanted.exp() * (wanted - found)).sum(-1).mean(1)
        first, target = found.argmax(-1), wanted.argmax(-1)
        agreement = (first == target).float().mean(1)
        for i, item in enumerate(part):
            said, meant = int(first[i, -1]), int(target[i, -1])
            results.append(
                ItemResult(
                    item_id=item.id,
                    cluster=item.cluster,
                    correct=said == meant,
                    loss=float(divergence[i]),
                    score=float(agreement[i]),
                    prediction=tokenizer.decode([said]),
                    target=tokenizer.decode([meant]),
                )
            )
    return results


def _rows(tokenizer: Any, items: Sequence[Item]) -> torch.Tensor:
    return torch.tensor(tokenizer([item.prompt for item in items])["input_ids"])


def _logits(model: Any, rows: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=rows, use_cache=False).logits
    return logits


def _item_seed(seed: int, item_id: str) -> int:
    return int(settings_hash([seed, item_id])[:15], 16)
