"""From a sharer's cache to messages, one for each item, and from messages back to a cache."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from nullarm.protocols.kv_communication.communication.prefill import Prefilled
from nullarm.protocols.kv_communication.fuser.projector import SourceKV
from nullarm.protocols.kv_communication.geometry import Stream, by_layer, of
from nullarm.protocols.kv_communication.wire.message import Message


def messages_of(cache: Prefilled, streams: Iterable[Stream], wanted: Sequence[Sequence[int]]) -> list[Message]:
    """What is to be sent of a batch.

    Args:
        cache: The sharer's, padded on the left.
        streams: Of which layers keys or values are sent.
        wanted: For each item the places of the tokens that are sent, counted from its first token, ascending.
    """
    width = cache.mask.shape[1]
    tokens = cache.mask.sum(1).tolist()
    sent = {stream: of(cache.kv, stream) for stream in streams}
    found = []
    for item, (length, places) in enumerate(zip(tokens, wanted, strict=True)):
        positions = torch.tensor(places, dtype=torch.int64)
        rows = (positions + width - length).to(cache.mask.device)
        found.append(Message(length, positions, {stream: kv[item][:, rows] for stream, kv in sent.items()}))
    return found


def received(messages: Sequence[Message], width: int, like: Tensor) -> dict[int, SourceKV]:
    """The cache that messages carry: layer to keys and values [batch, heads, width, head_dim], zero where not sent.

    Args:
        messages: One for each item, all with the same streams.
        width: Tokens of the longest of the sharer's rows.
        like: Of the device and type that are wanted.
    """
    streams = messages[0].streams
    padded = {
        stream: like.new_zeros(len(messages), sent.shape[0], width, sent.shape[2]) for stream, sent in streams.items()
    }
    for item, message in enumerate(messages):
        rows = (message.positions + width - message.tokens).to(like.device)
        for stream, sent in message.streams.items():
            padded[stream][item][:, rows] = sent.to(like)
    return by_layer(padded)
