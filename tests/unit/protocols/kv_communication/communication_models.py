"""Tiny random models of several classes and geometries, and open fusers between them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from small_fusers import SMALL, randomise
from transformers import AutoConfig, AutoModelForCausalLM

from nullarm.models.shapes import SHAPES
from nullarm.protocols.kv_communication.communication.exchange import Heard
from nullarm.protocols.kv_communication.communication.fuse import Contribution, source_index
from nullarm.protocols.kv_communication.communication.prefill import Prefilled, prefill
from nullarm.protocols.kv_communication.communication.rendering import Rendered
from nullarm.protocols.kv_communication.fuser import C2CProjector, Fuser
from nullarm.protocols.kv_communication.geometry import Geometry

VOCABULARY = 704


def tiny(name: str, *, seed: int = 0, **changes: Any) -> Any:
    """A frozen model of one of the tiny shapes, its sizes changed."""
    settings = {**SHAPES[name].config, **changes}
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)


def receiver(*, seed: int = 0) -> Any:
    """3 layers, 4 key-value heads of 6."""
    return tiny("tiny-qwen3", seed=seed, num_hidden_layers=3, num_key_value_heads=4, head_dim=6)


def sharer(*, seed: int = 1) -> Any:
    """2 layers, 2 key-value heads of 8."""
    return tiny("tiny-llama", seed=seed)


def other_sharer(*, seed: int = 2) -> Any:
    """4 layers, 1 key-value head of 6."""
    return tiny("tiny-qwen2", seed=seed, num_hidden_layers=4, num_key_value_heads=1, hidden_size=24)


def open_fuser(source: Any, target: Any, *, gates: float = 1.0, seed: int = 0) -> Fuser:
    """Between two models, in evaluation mode, its gates as said."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fuser = Fuser.create(Geometry.of(source.config), Geometry.of(target.config), **SMALL)
        for projector in fuser.projectors:
            assert isinstance(projector, C2CProjector)
            randomise(projector, gates)
    return fuser.eval()


def prompts(*lengths: int, seed: int = 0) -> list[list[int]]:
    """Rows of random tokens."""
    rng = random.Random(seed)
    return [[rng.randrange(3, VOCABULARY) for _ in range(length)] for length in lengths]


def contribution(fuser: Fuser, model: Any, heard: list[Heard]) -> Contribution:
    """What a sharer gives, without a wire between."""
    cache = prefill(model, [h.ids for h in heard])
    return Contribution(fuser, dict(enumerate(cache.kv)), source_index(heard, cache.mask))


def read_as(ids: list[int]) -> Rendered:
    """A prompt of these tokens, of which nothing else matters."""
    return Rendered("", ids, None, (0, 0), (0, 0), templated=False)


@contextmanager
def poisoned(model: Any, token: int) -> Iterator[None]:
    """Within, whoever reads this token computes with no numbers."""

    def hook(_: Any, args: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        return output.masked_fill((args[0] == token)[..., None], torch.nan)

    with model.get_input_embeddings().register_forward_hook(hook):
        yield


def row_of(cache: Prefilled, row: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """A row's cache without its padding."""
    real = cache.mask[row]
    return [(key[row][:, real], value[row][:, real]) for key, value in cache.kv]


@torch.no_grad()
def largest_difference(left: Any, right: Any) -> float:
    """Over all tensors of two caches."""
    pairs = [(x, y) for a, b in zip(left, right, strict=True) for x, y in zip(a, b, strict=True)]
    return max(float((x - y).abs().max()) if x.numel() else 0.0 for x, y in pairs)
