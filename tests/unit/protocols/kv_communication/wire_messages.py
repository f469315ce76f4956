"""Codecs of every kind, and messages of random numbers, for the tests of the wire."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch
from hypothesis import strategies as st

from nullarm.protocols.kv_communication.geometry import HALVES, Stream
from nullarm.protocols.kv_communication.wire.codec import (
    NAMED,
    Asymmetric,
    Codec,
    Kivi,
    NormalFloat,
    Outlier,
    Raw,
    Rotated,
    Symmetric,
)
from nullarm.protocols.kv_communication.wire.message import Message

CODECS: dict[str, Codec] = {
    **NAMED,
    "symmetric3_layer": Symmetric(bits=3, axis="layer"),
    "symmetric2": Symmetric(bits=2),
    **{f"asymmetric{b}": Asymmetric(bits=b) for b in (8, 4, 3, 2, 1)},
    "rotated2": Rotated(bits=2, group=16),
    **{f"kivi{b}": Kivi(bits=b, group=4, window=window) for b, window in ((4, 0), (2, 3), (1, 3))},
    "nf4": NormalFloat(group=8),
    "outlier2": Outlier(bits=2, group=8, share=0.05),
    "huffman8": Symmetric(entropy=True),
    "huffman3": Symmetric(bits=3, entropy=True),
    "huffman2": Kivi(entropy=True, window=2),
    "huffman_nf4": NormalFloat(entropy=True),
}
"""By name, for the ids of parametrised tests."""


def random_message(
    n: int = 7,
    *,
    heads: int = 2,
    head_dim: int = 16,
    layers: Sequence[int] = (0, 2, 5),
    positions: Sequence[int] | None = None,
    tokens: int | None = None,
    seed: int = 0,
) -> Message:
    """Normal keys and values; keys have a channel far from 0, as those of models have."""
    rng = torch.Generator().manual_seed(seed)
    streams = {
        Stream(layer, half): torch.randn(heads, n, head_dim, generator=rng) for layer in layers for half in HALVES
    }
    for stream, x in streams.items():
        if stream.half == "key":
            x[..., 0] += 20
    chosen = torch.arange(n) if positions is None else torch.tensor(positions, dtype=torch.int64)
    return Message(n if tokens is None else tokens, chosen, streams)


def sealed(body: bytes) -> bytes:
    """A body with the checksum that it should have."""
    return body + zlib.crc32(body).to_bytes(4, "little")


widths_of_codes = st.sampled_from((1, 2, 3, 4, 8))
groups = st.sampled_from((2, 3, 8, 32, 1000))
any_codec: st.SearchStrategy[Codec] = st.one_of(
    st.builds(Raw, dtype=st.sampled_from(("float32", "bfloat16", "float16"))),
    st.builds(Symmetric, bits=st.sampled_from((2, 3, 4, 8)), axis=st.sampled_from(("head", "layer"))),
    st.builds(Asymmetric, bits=widths_of_codes, group=groups),
    st.builds(Rotated, bits=widths_of_codes, group=groups),
    st.builds(Kivi, bits=widths_of_codes, group=groups, window=st.integers(0, 6)),
    st.builds(NormalFloat, group=groups),
    st.builds(Outlier, bits=widths_of_codes, group=groups, share=st.floats(0.001, 0.25)),
)
"""Without entropy coding."""
