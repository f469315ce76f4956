"""A model's cache of many prompts at once.

Rows are padded on the left, so that the last token of every row is last; the mask and the position ids (0 for the
first real token) make a row's cache what it would be alone. The vocabulary projection is left out. Models with sliding
windows keep their whole cache here: what a layer does not look at is masked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from nullarm.errors import DatasetError
from nullarm.models.anatomy import Anatomy, anatomy
from nullarm.protocols.kv_communication.fuser.projector import KV


@dataclass(frozen=True)
class Prefilled:
    """The cache of a batch of token rows.

    Attributes:
        kv: Per layer keys and values, each [batch, heads, tokens, head_dim]; keys after position embedding.
        mask: [batch, tokens], true for real tokens, which are the last ones of each row.
        positions: [batch, tokens] int64, 0 for the first real token of a row, and for padding.
    """

    kv: list[KV]
    mask: Tensor
    positions: Tensor


@torch.no_grad()
def prefill(model: Any, ids: Sequence[Sequence[int]]) -> Prefilled:
    """Run a model over rows of tokens and keep its cache.

    Args:
        model: Causal LM in evaluation mode.
        ids: Token ids of each row; a row may be empty.

    Raises:
        ModelError: The model's class is not known.
    """
    return prefill_padded(model, *padded(ids, anatomy(model).model.device, side="left"))


@torch.no_grad()
def prefill_padded(model: Any, ids: Tensor, mask: Tensor) -> Prefilled:
    """As `prefill`, of rows that are padded already.

    Args:
        model: Causal LM in evaluation mode.
        ids: [batch, tokens].
        mask: [batch, tokens], true for real tokens, which are the last ones of each row.

    Raises:
        ModelError: The model's class is not known.
    """
    cache = DynamicCache()
    advance(anatomy(model), cache, mask[:, :0], ids, mask)
    return Prefilled(kv_of(cache), mask, positions_of(mask))


def without_last(cache: Prefilled) -> Prefilled:
    """The cache of the same rows but for the last token of each, as wide as `prefill` makes it: 1 at least."""
    width = cache.mask.shape[1] - 1
    if not width:
        return Prefilled(cache.kv, torch.zeros_like(cache.mask), cache.positions)
    kv = [(key[:, :, :width], value[:, :, :width]) for key, value in cache.kv]
    return Prefilled(kv, cache.mask[:, :width], cache.positions[:, :width])


def refuse_too_long(model: Any, tokens: int) -> None:
    """Refuse what a model has no positions for; some fail on it, others answer and are wrong.

    Args:
        model: Causal LM.
        tokens: That are run in one sequence, new ones included.

    Raises:
        DatasetError: There are too many.
    """
    most = getattr(model.config, "max_position_embeddings", None)
    if most is not None and tokens > most:
        raise DatasetError("a prompt is longer than the model's context", value=f"{tokens} tokens", valid=f"{most}")


def advance(parts: Anatomy, cache: DynamicCache, seen: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """Run tokens after those of a cache, to which theirs are added; gradients are the caller's to allow or not.

    Args:
        parts: The model.
        cache: Of the tokens so far.
        seen: [batch, tokens so far], true for real ones.
        ids: [batch, new tokens].
        mask: [batch, new tokens], true for real ones, between which no padding lies.

    Returns:
        [batch, new tokens, d_model] what the head is given.
    """
    attended = torch.cat([seen, mask], dim=1)
    out = parts.trunk(
        input_ids=ids,
        attention_mask=attended,
        position_ids=positions_of(attended)[:, seen.shape[1] :],
        past_key_values=cache,
        use_cache=True,
    )
    hidden: Tensor = out.last_hidden_state
    return hidden


def cache_of(kv: Sequence[KV]) -> DynamicCache:
    """The library's cache around tensors, which it does not copy and never writes to."""
    cache = DynamicCache([(key[..., :0, :], value[..., :0, :]) for key, value in kv])
    for layer, (key, value) in zip(cache.layers, kv, strict=True):
        layer.keys, layer.values = key, value
    return cache


def kv_of(cache: DynamicCache) -> list[KV]:
    """The tensors of a cache, layer by layer."""
    return [(layer.keys, layer.values) for layer in cache.layers]


def positions_of(mask: Tensor) -> Tensor:
    """[batch, tokens] position ids: how many real tokens stand before."""
    return (mask.cumsum(1) - 1).clamp(min=0)


def padded(rows: Sequence[Sequence[int]], device: Any, *, side: str) -> tuple[Tensor, Tensor]:
    """Ids and mask [row, token], at least one token wide, so that rows that are all empty can be run too."""
    width = max(1, *map(len, rows))
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        place = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[i, place] = torch.tensor(row, dtype=torch.long)
        mask[i, place] = True
    return ids.to(device), mask.to(device)
