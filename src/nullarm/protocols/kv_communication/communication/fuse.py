"""From prefilled caches to the receiver's fused one, once all of them are whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from nullarm.protocols.kv_communication.communication.alignment import NOTHING
from nullarm.protocols.kv_communication.communication.exchange import Heard
from nullarm.protocols.kv_communication.communication.prefill import Prefilled
from nullarm.protocols.kv_communication.fuser import Fuser, fuse_in_parallel, fuse_sequentially
from nullarm.protocols.kv_communication.fuser.projector import KV, SourceKV
from nullarm.protocols.kv_communication.geometry import Stream

Combine = Literal["sequential", "parallel"]

COMBINE = {"sequential": fuse_sequentially, "parallel": fuse_in_parallel}


@dataclass(frozen=True)
class Contribution:
    """What one sharer gives to a batch of items.

    Attributes:
        fuser: From this sharer to the receiver.
        streams: Layer of the sharer to keys and values, each [batch, heads, sharer's tokens, head_dim], or None where
            not sent.
        source: [batch, receiver's tokens] which of the sharer's tokens each takes, -1: not fused; see `source_index`.
    """

    fuser: Fuser
    streams: Mapping[int, SourceKV]
    source: Tensor


def source_index(heard: Sequence[Heard], sharer_mask: Tensor) -> Tensor:
    """`Heard.source` of a batch, as places in the padded rows of both models.

    Args:
        heard: What the sharer reads, item by item.
        sharer_mask: [batch, sharer's tokens], true for real tokens of its rows, padded on the left.

    Returns:
        [batch, tokens of the longest prefix of the receiver], on the sharer's device, -1 where nothing is fused.
    """
    width = max(1, *(len(h.source) - 1 for h in heard))
    sharer_width = sharer_mask.shape[1]
    index = torch.full((len(heard), width), NOTHING)
    for i, h in enumerate(heard):
        source = torch.tensor(h.source[:-1], dtype=torch.long)
        index[i, width - len(source) :] = torch.where(source < 0, NOTHING, source + sharer_width - len(h.ids))
    return index.to(sharer_mask.device)


def gathered(streams: Mapping[int, SourceKV], source: Tensor) -> tuple[dict[int, SourceKV], Tensor]:
    """A sharer's cache at the receiver's tokens, and where there is something to fuse.

    Args:
        streams: Keys and values, each [batch, heads, sharer's tokens, head_dim].
        source: [batch, receiver's tokens], -1: nothing.

    Returns:
        Keys and values, each [batch, heads, receiver's tokens, head_dim], any number where the mask is false; and the
        mask [batch, receiver's tokens].
    """
    index = source.clamp(min=0)[:, None, :, None]

    def take(half: Tensor | None) -> Tensor | None:
        return None if half is None else half.gather(2, index.expand(-1, half.shape[1], -1, half.shape[3]))

    return {layer: (take(key), take(value)) for layer, (key, value) in streams.items()}, source >= 0


def together(
    receiver: Prefilled, contributions: Sequence[Contribution], *, combine: Combine = "sequential"
) -> Prefilled:
    """The receiver's cache with what the sharers give.

    Args:
        receiver: Its cache of the prompts but for their last tokens.
        contributions: One per sharer.
        combine: Several sharers: each on what the one before it made, or all on the receiver's own cache.
    """
    return replace(receiver, kv=fused(receiver.kv, contributions, combine))


def fused(target: Sequence[KV], contributions: Sequence[Contribution], combine: Combine) -> list[KV]:
    """The receiver's keys and values, per layer [batch, heads, tokens, head_dim], with what the sharers give."""
    at_receiver = [gathered(_read_by(c.fuser, c.streams), c.source) for c in contributions]
    sources, masks = [streams for streams, _ in at_receiver], [mask for _, mask in at_receiver]
    return COMBINE[combine]([c.fuser for c in contributions], sources, target, masks)


def _read_by(fuser: Fuser, streams: Mapping[int, SourceKV]) -> dict[int, SourceKV]:
    """Those streams that the fuser reads: none is moved in vain."""
    read = set(fuser.streams())
    return {
        layer: (key if Stream(layer, "key") in read else None, value if Stream(layer, "value") in read else None)
        for layer, (key, value) in streams.items()
    }
