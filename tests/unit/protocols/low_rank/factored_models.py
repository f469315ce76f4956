"""Small models and their factors, for the tests of `factored`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nullarm.models.load import load_causal_lm
from nullarm.protocols.low_rank.factored.factors import Compressed, Factors, Rounded
from nullarm.protocols.low_rank.slots import SLOTS, Group, groups, linear

MODELS = (
    "builtin:world",
    *(f"random:tiny-{name}" for name in ("llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "gemma3")),
)


def loaded(ref: str = "random:tiny-qwen2", dtype: str = "float32") -> Any:
    """A model; Qwen2 by default, which has biases. Those are drawn: they are zero in a random model."""
    model, _ = load_causal_lm(ref, dtype=dtype)
    draw = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.copy_(torch.randn(parameter.shape, generator=draw))
    return model


def ids(length: int = 9, *, batch: int = 2) -> Tensor:
    """Token ids `[batch, position]`."""
    return torch.randint(1, 256, (batch, length), generator=torch.Generator().manual_seed(0))


def truncated(model: Any, group: Group, rank: int) -> Factors:
    """The best factors of a group's matrices."""
    stacked = torch.cat([linear(model, group.layer, slot).weight.detach().float() for slot in group.slots])
    u, s, v = torch.linalg.svd(stacked, full_matrices=False)
    return Factors(group.slots, v[:rank], (u[:, :rank] * s[:rank]).split(group.out_features))


def rounded(model: Any, layer: int, slot: str, *, bits: int, block: int = 32) -> Rounded:
    """Codes of one matrix, whose width is a multiple of the block."""
    weight = linear(model, layer, slot).weight.detach().float()
    blocks = weight.view(len(weight), -1, block)
    largest = 2 ** (bits - 1) - 1
    scales = (blocks.abs().amax(-1) / largest).half()
    codes = (blocks / scales.float()[..., None]).round().clamp(-largest, largest).flatten(1).to(torch.int8)
    return Rounded.pack(slot, codes, scales, bits=bits, block=block)


def factored(model: Any, ref: str, *, rank: int | None = None, slots: tuple[str, ...] = SLOTS) -> Compressed:
    """Every group of a model, over shared bases; at the rank that loses nothing when left out."""
    found = groups(ref, slots, shared=True)
    return {(g.layer, g.slots): truncated(model, g, min(rank or g.max_rank, g.max_rank)) for g in found}


def mixed(model: Any, ref: str, rank: int) -> Compressed:
    """Shared bases for attention, one factored matrix in the MLP, the others rounded to 8 and to 4 bits."""
    made = factored(model, ref, rank=rank, slots=("q", "k", "v", "o"))
    for layer in {layer for layer, _ in made}:
        made[layer, ("gate",)] = truncated(model, _one(ref, layer, "gate"), rank)
        made[layer, ("up",)] = rounded(model, layer, "up", bits=8)
        made[layer, ("down",)] = rounded(model, layer, "down", bits=4)
    return made


def _one(ref: str, layer: int, slot: str) -> Group:
    return next(g for g in groups(ref, (slot,), shared=False) if g.layer == layer)
