"""How much a token is worth sending, before anything is sent.

A token is sent in all layers or in none, so every head of every layer has a say. A cache is `{layer: (key, value)}`
with both `[batch, heads, tokens, head_dim]`, keys rotated, of the layers that are read from; `mask` is
`[batch, tokens]`, true where a token is. Scores are `[batch, tokens]`, fp32, the highest first to be sent, −∞ at
padding; an item's do not depend on what else is in its batch.

`key_norm`, `value_norm` and `expected_attention` are the sharer's. `last_attention` is the receiver's, which asks for
what it wants (order `two_round`). `delta` knows both caches, which nobody does before anything is sent: an oracle's
information, and no method.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from nullarm.protocols.kv_communication.fuser.projector import KV
from nullarm.protocols.kv_communication.selection.queries import Queries, turned_back

SINKS = 4
"""First tokens, which draw attention whatever they say: their queries are unlike all later ones."""


def key_norm(cache: Mapping[int, KV], mask: Tensor) -> Tensor:
    """Minus the norm of the key: keys that are attended to have small norms (2406.11430; kvpress, KnormPress)."""
    norms = _equal_say([key.float().norm(dim=-1) for key, _ in cache.values()], mask)
    return _at_tokens(-norms, mask)


def value_norm(cache: Mapping[int, KV], mask: Tensor) -> Tensor:
    """Norm of the value: what attention brings along from there."""
    return _at_tokens(_equal_say([value.float().norm(dim=-1) for _, value in cache.values()], mask), mask)


def expected_attention(cache: Mapping[int, KV], mask: Tensor, queries: Queries, *, future: int = 512) -> Tensor:
    """Attention that queries to come can be expected to pay, times the norm of the value (2510.00636; kvpress).

    Queries to come are taken for normal, with the mean μ and covariance Σ of those of the item itself, turned by the
    mean R of the rotations to the `future` positions behind it. Then E exp(qᵀk/√d) = exp(μᵀRᵀk/√d + kᵀRΣRᵀk/2d), which
    is normalised over the item's tokens and averaged over the query heads of a key's group. As in kvpress, μ and Σ
    leave out the first tokens; unlike there, the first tokens are not kept at any price, for the receiver has its own.

    Args:
        cache: The sharer's.
        mask: Its tokens.
        queries: Of the forward pass that made the cache.
        future: Positions ahead, tokens.
    """
    length = mask.sum(dim=-1, keepdim=True)
    turns = queries.turns(length + torch.arange(future, device=mask.device))
    counted = _behind_sinks(mask)
    worth = []
    for layer, (key, value) in cache.items():
        mean, covariance = _statistics(_grouped(queries.by_layer[layer], key.shape[1]), counted)
        attention = _attention(turned_back(key, turns), mean, covariance, mask)
        worth.append(attention * value.float().norm(dim=-1))
    return _at_tokens(_equal_say(worth, mask), mask)


def last_attention(cache: Mapping[int, KV], mask: Tensor, queries: Queries) -> Tensor:
    """Attention that the last token pays, mean over heads and layers (the criterion of TOVA, 2401.06104).

    Of the receiver, on its own cache of the whole prompt: what it looks at for its answer is what it asks the sharer
    about. Caches are padded on the left, so the last token is last in every row. A sliding window is not looked at.

    Args:
        cache: The receiver's.
        mask: Its tokens.
        queries: Of the forward pass that made the cache.
    """
    turns = queries.turns(mask.sum(dim=-1, keepdim=True) - 1)
    attention = []
    for layer, (key, _) in cache.items():
        last = _grouped(queries.by_layer[layer], key.shape[1])[..., -1, :].float()
        attention.append(_attention(turned_back(key, turns), last, None, mask))
    return _at_tokens(_equal_say(attention, mask), mask)


def delta(own: Sequence[KV], fused: Sequence[KV], mask: Tensor) -> Tensor:
    """Norm of what fusing changes at a token, mean over layers, keys and values.

    Each is relative to the norm that the receiver's own keys, or values, of this layer have on average over the item.

    Args:
        own: The receiver's cache by layer.
        fused: The same after a fusion of all tokens.
        mask: The receiver's tokens.
    """
    parts = []
    for before, after in zip(own, fused, strict=True):
        for old, new in zip(before, after, strict=True):
            change, usual = _token_norm(new.float() - old.float()), _token_norm(old.float())
            parts.append(change / _mean_over_tokens(usual, mask))
    return _at_tokens(torch.stack(parts).mean(dim=0), mask)


def _grouped(queries: Tensor, heads: int) -> Tensor:
    """`[batch, key heads, group, tokens, head_dim]`: the queries of every key's group."""
    batch, all_heads, *rest = queries.shape
    return queries.reshape(batch, heads, all_heads // heads, *rest)


def _behind_sinks(mask: Tensor) -> Tensor:
    """Tokens but the first; of an item that has no more than these, its last."""
    behind = mask.cumsum(dim=-1)
    return mask.bool() & (behind > mask.sum(dim=-1, keepdim=True).sub(1).clamp(max=SINKS))


def _statistics(queries: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """Mean `[batch, key heads, group, head_dim]` and covariance `[…, head_dim, head_dim]` over the counted tokens."""
    left_out = ~counted[:, None, None, :, None]
    number = counted.sum(dim=-1)[:, None, None, None]
    kept = queries.float().masked_fill(left_out, 0)
    mean = kept.sum(dim=-2) / number
    centred = (kept - mean[..., None, :]).masked_fill(left_out, 0)
    return mean, centred.transpose(-1, -2) @ centred / number[..., None]


def _attention(keys: Tensor, mean: Tensor, covariance: Tensor | None, mask: Tensor) -> Tensor:
    """Over tokens, `[batch, key heads, tokens]`: mean over the group of softmax(μᵀk/√d + kᵀΣk/2d)."""
    width = keys.shape[-1]
    logits: Tensor = mean @ keys.transpose(-1, -2) / width**0.5
    if covariance is not None:
        spread = keys[:, :, None] @ covariance
        logits = logits + (spread * keys[:, :, None]).sum(dim=-1) / (2 * width)
    return logits.masked_fill(~mask.bool()[:, None, None], -torch.inf).softmax(dim=-1).mean(dim=2)


def _equal_say(worth: Sequence[Tensor], mask: Tensor) -> Tensor:
    """Mean over all heads of `[batch, heads, tokens]`, each relative to its mean over the item's tokens; 0 of none."""
    if not worth:
        return torch.zeros(mask.shape, device=mask.device)
    every = torch.cat(list(worth), dim=1)
    return (every / _mean_over_tokens(every, mask[:, None])).mean(dim=1)


def _mean_over_tokens(numbers: Tensor, mask: Tensor) -> Tensor:
    """Over the last dimension, kept; never 0, for a cache of zeros has no token before another."""
    mean: Tensor = numbers.masked_fill(~mask.bool(), 0).sum(dim=-1, keepdim=True) / mask.sum(dim=-1, keepdim=True)
    return mean.clamp_min(torch.finfo(numbers.dtype).tiny)


def _at_tokens(scores: Tensor, mask: Tensor) -> Tensor:
    return scores.masked_fill(~mask.bool(), -torch.inf)


def _token_norm(numbers: Tensor) -> Tensor:
    """`[batch, tokens]`, over heads and width."""
    norm: Tensor = torch.linalg.vector_norm(numbers, dim=(1, 3))
    return norm
