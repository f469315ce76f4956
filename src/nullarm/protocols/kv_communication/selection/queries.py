"""A model's queries before their rotation, picked up while it prefills, and the rotations ahead of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from nullarm.errors import ModelError
from nullarm.models.anatomy import anatomy
from nullarm.protocols.kv_communication.selection.known_queries import LAST_BEFORE_ROTATION


@dataclass(frozen=True)
class Queries:
    """Queries of one forward pass.

    Attributes:
        rotary: The model's rotary embedding.
        by_layer: `[batch, heads, tokens, head_dim]`, not rotated, in the model's dtype.
    """

    rotary: nn.Module
    by_layer: dict[int, Tensor] = field(default_factory=dict)

    def turns(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine of the rotations to `positions [batch, count]`, means over the count: `[batch, head_dim/2]`.

        Read off the frequencies, not by calling the module: one that stretches with the length would be changed by it.
        """
        frequencies, scale = self.rotary.inv_freq, self.rotary.attention_scaling
        assert isinstance(frequencies, Tensor)
        assert isinstance(scale, float | int)
        angles = positions[..., None].float() * frequencies.float()
        return angles.cos().mean(dim=1) * scale, angles.sin().mean(dim=1) * scale


@contextmanager
def captured_queries(model: Any, layers: Iterable[int]) -> Iterator[Queries]:
    """Within, a forward pass leaves its queries behind; a second one replaces those of the first.

    Args:
        model: A causal LM.
        layers: Whose queries are wanted.

    Raises:
        ModelError: It is not known where the model's queries are, or it has no such layer.
    """
    parts = anatomy(model)
    name = type(parts.model).__name__
    if name not in LAST_BEFORE_ROTATION:
        raise ModelError("queries are not known to be at hand here", value=name, valid=LAST_BEFORE_ROTATION)
    wanted = sorted(set(layers))
    if unknown := sorted(set(wanted) - set(range(len(parts.blocks)))):
        raise ModelError("there is no such layer", value=unknown, valid=f"0 to {len(parts.blocks) - 1}")
    trunk: Any = parts.trunk
    queries = Queries(trunk.rotary_emb)
    with ExitStack() as hooks:
        for layer in wanted:
            attention: Any = parts.blocks[layer].self_attn
            module = getattr(attention, LAST_BEFORE_ROTATION[name])
            hook = _keep(queries.by_layer, layer, attention.head_dim)
            hooks.enter_context(module.register_forward_hook(hook))
        yield queries


def turned_back(keys: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
    """Rᵀk of every key, for the mean rotation R: its product with a query is that of the key with the turned query.

    Args:
        keys: `[batch, heads, tokens, head_dim]`.
        turns: Cosine and sine, each `[batch, head_dim/2]`.

    Returns:
        As the keys, fp32.
    """
    cosine, sine = (part[:, None, None] for part in turns)
    first, second = keys.float().chunk(2, dim=-1)
    return torch.cat([first * cosine + second * sine, second * cosine - first * sine], dim=-1)


def _keep(by_layer: dict[int, Tensor], layer: int, head_dim: int) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        batch, tokens = output.shape[:2]
        by_layer[layer] = output.detach().view(batch, tokens, -1, head_dim).transpose(1, 2)

    return hook
