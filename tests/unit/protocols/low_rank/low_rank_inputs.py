"""Matrices, inputs with a few strong directions, and token ids of the built-in world, for tests of compression."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor, nn

from nullarm.models.tiny.pretrain import pack
from nullarm.models.tiny.world import World
from nullarm.protocols.low_rank.calibration.statistics import InputStatistics, InputSums


def random_matrices(width: int, *heights: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Matrices `[height, width]` of different norms."""
    rng = torch.Generator().manual_seed(seed)
    return [
        (k + 1) * torch.randn(h, width, generator=rng, dtype=torch.float64).to(dtype) for k, h in enumerate(heights)
    ]


def uneven_inputs(width: int, tokens: int, seed: int = 1) -> Tensor:
    """Inputs `[tokens, width]`, float64, whose channels go together and have sizes a factor of thirty apart."""
    rng = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=rng, dtype=torch.float64) * torch.logspace(0, -1.5, width)[:, None]
    scales = torch.logspace(1, -0.5, width, dtype=torch.float64)[torch.randperm(width, generator=rng)]
    return torch.randn(tokens, width, generator=rng, dtype=torch.float64) @ mixing * scales


def statistics_of(inputs: Tensor, weight: Tensor | None = None) -> InputStatistics:
    """Of inputs `[tokens, in]`, in float64 throughout; with a weight, its outputs' Gram matrix in place of theirs."""
    outputs = None if weight is None else inputs @ weight.double().T
    return InputStatistics(
        tokens=len(inputs),
        gram=inputs.T @ inputs if outputs is None else None,
        output_gram=None if outputs is None else outputs.T @ outputs,
        mean_abs=inputs.abs().mean(0),
        sample=inputs[:1024].float(),
    )


def streamed(layer: nn.Linear, *parts: Tensor) -> InputStatistics:
    """As a layer's inputs are counted, part by part."""
    sums = InputSums(layer, sum(part.shape[:-1].numel() for part in parts))
    for part in parts:
        sums.add(part)
    return sums.finish()


def world_batches(tokenizer: Any, tokens: int, seed: int = 0) -> list[Tensor]:
    """Token ids `[8, 64]` of documents of the world."""
    ids: Tensor = pack(World().document, tokenizer, tokens, 64, random.Random(seed))
    return list(torch.split(ids, 8))
