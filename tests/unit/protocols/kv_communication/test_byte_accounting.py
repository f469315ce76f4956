"""The original's three faults of byte accounting, each with its figure, and what is charged here instead."""

from __future__ import annotations

import torch

from nullarm.models.shapes import SHAPES
from nullarm.protocols.kv_communication.communication.prefill import Prefilled
from nullarm.protocols.kv_communication.communication.transmission import messages_of
from nullarm.protocols.kv_communication.fuser import Fuser, last_aligned
from nullarm.protocols.kv_communication.geometry import Geometry, Stream
from nullarm.protocols.kv_communication.wire.codec import Raw
from nullarm.protocols.kv_communication.wire.message import encode_many
from nullarm.protocols.kv_communication.wire.size import message_bytes, stream_bytes

SHARER = Geometry(layers=24, heads=2, head_dim=64)
"""Qwen2.5-0.5B."""
RECEIVER = Geometry(layers=28, heads=8, head_dim=128)
"""Qwen3-0.6B."""


def test_the_wire_carries_the_sharers_geometry_not_the_receivers() -> None:
    assert Geometry.of_reference("Qwen/Qwen2.5-0.5B") == SHARER
    assert SHAPES["qwen2.5-0.5b"].hub_id == "Qwen/Qwen2.5-0.5B"
    a_token = sum(stream_bytes(SHARER, Raw(), 16, 1) for _ in SHARER.streams)

    assert a_token == 12_288
    original = RECEIVER.layers * 2 * RECEIVER.width  # one byte a number: the int8 of its own pair
    assert original == 57_344
    assert round(original / a_token, 2) == 4.67


def test_a_source_layer_that_several_target_layers_read_is_charged_once() -> None:
    fuser = Fuser.create(SHARER, RECEIVER, hidden_dim=2, intermediate_dim=2)
    readers = last_aligned(SHARER.layers, RECEIVER.layers)

    assert [t for t, sources in readers.items() if sources == (0,)] == [0, 1, 2, 3, 4]
    assert fuser.streams() == SHARER.streams
    assert len(fuser.streams()) == 48 < 2 * RECEIVER.layers


def test_a_quarter_of_the_tokens_costs_a_quarter_of_the_bytes() -> None:
    geometry, tokens = Geometry(layers=2, heads=2, head_dim=4), 64
    kv = [(torch.randn(1, 2, tokens, 4), torch.randn(1, 2, tokens, 4)) for _ in range(geometry.layers)]
    mask = torch.ones(1, tokens, dtype=torch.bool)
    cache = Prefilled(kv, mask, mask.cumsum(1) - 1)

    def sent(places: range) -> int:
        (blob,) = encode_many(messages_of(cache, geometry.streams, [places]), Raw())
        assert len(blob) == message_bytes(
            geometry, Raw(), streams=geometry.streams, tokens=tokens, sent=len(places), contiguous=True, bits=None
        )
        return len(blob)

    per_token = 2 * geometry.width * len(geometry.streams)
    assert sent(range(tokens)) - sent(range(48, 64)) == 48 * per_token
    assert sent(range(48, 64)) < 0.3 * sent(range(tokens))


def test_a_closed_gate_costs_nothing() -> None:
    geometry = Geometry(layers=3, heads=2, head_dim=4)
    fuser = Fuser.create(geometry, geometry, hidden_dim=2, intermediate_dim=2)
    for target in fuser:
        fuser[target].gate_logit("key").data.fill_(1.0)
        fuser[target].gate_logit("value").data.fill_(-1.0)
    fuser.eval()

    assert fuser.streams() == tuple(Stream(layer, "key") for layer in range(3))
