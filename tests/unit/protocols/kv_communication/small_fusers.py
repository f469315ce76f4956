"""Small fusers with open gates, and random caches for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nullarm.protocols.kv_communication.fuser import C2CProjector, Fuser
from nullarm.protocols.kv_communication.fuser.fuser import ProjectorOptions
from nullarm.protocols.kv_communication.fuser.layers import LayerMap
from nullarm.protocols.kv_communication.fuser.projector import KV, SourceKV
from nullarm.protocols.kv_communication.geometry import HALVES, Geometry, Stream

SHARER = Geometry(layers=3, heads=2, head_dim=4)
RECEIVER = Geometry(layers=4, heads=3, head_dim=5)
SMALL: ProjectorOptions = {"hidden_dim": 8, "intermediate_dim": 12}


def projector(*, gates: float = 1.0, seed: int = 0, dtype: torch.dtype = torch.float32, **options: Any) -> C2CProjector:
    """From `SHARER` to `RECEIVER`, in evaluation mode, with these gate logits and no weight at its initial value."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = C2CProjector(4, 5, 2, 3, **{**SMALL, **options})
        randomise(made, gates)
    return made.to(dtype).eval()


def fuser(*, gates: float = 1.0, seed: int = 0, layer_map: LayerMap | None = None) -> Fuser:
    """From `SHARER` to `RECEIVER`, in evaluation mode, as `projector`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = Fuser.create(SHARER, RECEIVER, layer_map, **SMALL)
        for layer in made.projectors:
            assert isinstance(layer, C2CProjector)
            randomise(layer, gates)
    return made.eval()


def randomise(made: C2CProjector, gates: float) -> None:
    """Norms and biases away from one and zero, so that none can be forgotten."""
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.endswith(("norm.weight", "bias")):
                parameter.normal_(mean=0.5, std=0.5)
        for half in HALVES:
            made.gate_logit(half).fill_(gates)


def kv(geometry: Geometry, batch: int = 2, tokens: int = 6, *, seed: int = 1, dtype: torch.dtype = torch.float32) -> KV:
    """Keys and values of one layer."""
    generator = torch.Generator().manual_seed(seed)
    key, value = torch.randn(2, batch, geometry.heads, tokens, geometry.head_dim, generator=generator).to(dtype)
    return key, value


def cache(geometry: Geometry, batch: int = 2, tokens: int = 6, *, seed: int = 1) -> list[KV]:
    """Keys and values of all layers."""
    return [kv(geometry, batch, tokens, seed=100 * seed + layer) for layer in range(geometry.layers)]


def sent(of: list[KV], streams: tuple[Stream, ...] | None = None) -> dict[int, SourceKV]:
    """A sharer's cache as it arrives: only these streams, or all of them."""
    if streams is None:
        return dict(enumerate(of))
    arrived: dict[int, SourceKV] = {}
    for layer, _ in streams:
        key, value = of[layer]
        arrived[layer] = (key if (layer, "key") in streams else None, value if (layer, "value") in streams else None)
    return arrived


def same(left: list[KV], right: list[KV]) -> bool:
    """Whether two caches are equal in every bit."""
    pairs: list[tuple[Tensor, Tensor]] = [p for a, b in zip(left, right, strict=True) for p in zip(a, b, strict=True)]
    return all(torch.equal(a, b) for a, b in pairs)
