from __future__ import annotations

import torch

from nullarm.protocols.kv_communication.communication.prefill import Prefilled
from nullarm.protocols.kv_communication.communication.transmission import messages_of, received
from nullarm.protocols.kv_communication.geometry import Geometry

GEOMETRY = Geometry(layers=2, heads=3, head_dim=4)
LENGTHS = (5, 2)


def cache() -> Prefilled:
    """Two rows padded on the left, with NaN where there is padding."""
    mask = torch.tensor([[True] * 5, [False] * 3 + [True] * 2])
    gap = torch.where(mask, 0.0, torch.nan)[:, None, :, None]
    kv = [(torch.randn(2, 3, 5, 4) + gap, torch.randn(2, 3, 5, 4) + gap) for _ in range(2)]
    return Prefilled(kv, mask, (mask.cumsum(1) - 1).clamp(min=0))


def test_what_is_sent_arrives_at_its_place_and_the_rest_is_zero() -> None:
    sharer = cache()
    messages = messages_of(sharer, GEOMETRY.streams, [[0, 3], [1]])
    got = received(messages, 5, sharer.kv[0][0])

    assert [(m.tokens, m.positions.tolist()) for m in messages] == [(5, [0, 3]), (2, [1])]
    for layer, halves in got.items():
        for half, original in zip(halves, sharer.kv[layer], strict=True):
            assert half is not None
            torch.testing.assert_close(half[0, :, [0, 3]], original[0, :, [0, 3]])
            torch.testing.assert_close(half[1, :, 4], original[1, :, 4])
            assert half[0, :, [1, 2, 4]].count_nonzero() == 0
            assert half[1, :, :4].count_nonzero() == 0


def test_a_half_that_is_not_sent_is_absent() -> None:
    sharer = cache()
    keys = [stream for stream in GEOMETRY.streams if stream.half == "key" and stream.layer == 1]
    got = received(messages_of(sharer, keys, [[0], [0]]), 5, sharer.kv[0][0])

    assert set(got) == {1}
    assert got[1][1] is None
    assert received(messages_of(sharer, [], [[0], [0]]), 5, sharer.kv[0][0]) == {}
