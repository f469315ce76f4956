"""How far the inputs of compressed groups drift from what they are in the original model, at the same tokens."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from nullarm.models.anatomy import anatomy
from nullarm.protocols.low_rank.factored.factors import Compressed
from nullarm.protocols.low_rank.factored.install import replaced
from nullarm.protocols.low_rank.slots import place

Key = tuple[int, tuple[str, ...]]
"""Layer and slots of a group."""


def drifts(original: Any, compressed: Compressed, ids: Tensor) -> Iterator[tuple[Key, Tensor, Tensor]]:
    """What each group reads in the compressed model − what it reads in the original.

    Args:
        original: The causal LM; it is as it was when the first drift is out.
        compressed: Its factors.
        ids: `[batch, position]`, without padding.

    Yields:
        The group's key, D `[tokens, in]` in fp32 at least, and the norm of what it reads in the original.
    """
    before = _inputs(original, compressed, ids)
    with replaced(original, compressed):
        after = _inputs(original, compressed, ids)
    for key in compressed:
        there, here = (inputs.pop(key).flatten(0, -2) for inputs in (before, after))
        exact = torch.promote_types(there.dtype, torch.float32)
        yield key, here.to(exact) - there, torch.linalg.vector_norm(there, dtype=exact)


def _inputs(model: Any, keys: Collection[Key], ids: Tensor) -> dict[Key, Tensor]:
    """What the first slot of each group reads, `[batch, position, in]`."""
    seen: dict[Key, Tensor] = {}

    def keep(key: Key) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            seen[key] = args[0]

        return hook

    with torch.no_grad(), ExitStack() as hooks:
        for layer, slots in keys:
            parent, name = place(model, layer, slots[0])
            hooks.enter_context(getattr(parent, name).register_forward_pre_hook(keep((layer, slots))))
        anatomy(model).trunk(input_ids=ids.to(model.device), use_cache=False)
    return seen
