"""What each codec gives back: equal to formulas written out plainly, within half a step, exact where it can be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from wire_messages import CODECS, random_message

from nullarm.errors import MessageError
from nullarm.protocols.kv_communication.geometry import Stream
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
from nullarm.protocols.kv_communication.wire.message import Message, decode, encode
from nullarm.protocols.kv_communication.wire.normal_float import LEVELS
from nullarm.protocols.kv_communication.wire.outlier import largest
from nullarm.protocols.kv_communication.wire.rotated import rotate

KEY, VALUE = Stream(0, "key"), Stream(0, "value")


def sent(x: Tensor, codec: Codec, stream: Stream = KEY) -> Tensor:
    """[heads, n, head_dim], over the wire and back."""
    message = Message(x.shape[1], torch.arange(x.shape[1]), {stream: x})
    return decode(encode(message, codec)).streams[stream]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_raw_numbers_are_those_of_their_dtype(dtype: Any) -> None:
    x = normal(2, 5, 8)
    assert torch.equal(sent(x, Raw(dtype=dtype)), x.to(getattr(torch, dtype)).float())


@pytest.mark.parametrize("axis", ["head", "layer"])
@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_symmetric_is_the_sources_quantisation(bits: Any, axis: Any) -> None:
    """Formula of the source, parity mode, bit by bit."""
    x = normal(3, 40, 16) * torch.tensor([0.01, 1.0, 30.0])[:, None, None]
    qmax = 2 ** (bits - 1) - 1
    amax = x.abs().amax((1, 2), keepdim=True) if axis == "head" else x.abs().amax()
    scale = (amax / qmax).clamp(min=1e-6)
    expected = (x / scale).round().clamp(-qmax, qmax) * scale
    assert torch.equal(sent(x, Symmetric(bits=bits, axis=axis)), expected)


@pytest.mark.parametrize("group", [4, 5, 16, 64])
@pytest.mark.parametrize("bits", [8, 4, 3, 2])
@pytest.mark.parametrize("stream", [KEY, VALUE], ids=lambda s: s.half)
@pytest.mark.parametrize("kind", [Asymmetric, Kivi])
def test_errors_are_half_a_step_at_most(kind: Any, stream: Stream, bits: int, group: int) -> None:
    x = normal(2, 11, 16) * 3 + 100  # far from 0: fp16 bounds are coarse there
    restored = sent(x, kind(bits=bits, group=group), stream)
    along = 1 if kind is Kivi and stream.half == "key" else 2
    for part, back in zip(x.split(group, along), restored.split(group, along), strict=True):  # type: ignore[no-untyped-call]
        span = part.amax(along, keepdim=True) - part.amin(along, keepdim=True) + 2 * 2**-4  # bounds go outwards
        assert ((part - back).abs() <= span / (2**bits - 1) / 2 + 1e-5).all()


@settings(deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([8, 4, 3, 2]))
def test_the_ends_of_a_group_are_exact_in_half_precision(seed: int, bits: Any) -> None:
    x = normal(2, 3, 16, seed=seed).bfloat16().float()
    restored = sent(x, Asymmetric(bits=bits, group=8)).unflatten(2, (2, 8))  # type: ignore[no-untyped-call]
    groups = x.unflatten(2, (2, 8))  # type: ignore[no-untyped-call]
    for extreme in (torch.amin, torch.amax):
        torch.testing.assert_close(extreme(restored, 3), extreme(groups, 3), rtol=0, atol=2**-20)


@pytest.mark.parametrize("value", [0.0, 1.0, -0.3125, 3e-8, 60000.0])
@pytest.mark.parametrize("name", [n for n in CODECS if not n.startswith(("rotated", "int", "symm", "huffman"))])
def test_constant_groups_come_back(name: str, value: float) -> None:
    """Tiny ones as well: fp16 ends at 6e-8, and no scale may vanish below it."""
    restored = sent(torch.full((2, 7, 16), value), CODECS[name])
    assert torch.isfinite(restored).all()
    torch.testing.assert_close(restored, torch.full_like(restored, value), rtol=2**-8, atol=6e-8)


@pytest.mark.parametrize("name", CODECS)
def test_zeros_are_zeros(name: str) -> None:
    assert torch.equal(sent(torch.zeros(2, 9, 16), CODECS[name]), torch.zeros(2, 9, 16))


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1e3])
def test_the_error_scales_with_the_numbers(scale: float) -> None:
    x = normal(2, 9, 32)
    for codec in (Asymmetric(bits=8), Rotated(bits=8), Kivi(bits=8), NormalFloat(), Outlier(bits=8)):
        largest = (sent(x * scale, codec) - x * scale).abs().max()
        assert largest <= (0.2 if codec.kind == "nf4" else 0.02) * 4 * scale + 1e-7, codec


def test_one_bit_is_two_means() -> None:
    """The best that two levels can do to a normal is an error of 0.60 of its size; its extremes would give 1.4."""
    x = normal(2, 200, 32)
    relative = (sent(x, Asymmetric(bits=1)) - x).norm() / x.norm()
    assert 0.5 < relative < 0.62
    two_valued = torch.where(x > 1, 4.0, -1.0)
    assert torch.equal(sent(two_valued, Asymmetric(bits=1)), two_valued)


def test_nf4_takes_the_nearest_level() -> None:
    x = normal(2, 30, 32)
    scale = x.abs().amax(2, keepdim=True)
    distance = ((x / scale)[..., None] - torch.tensor(LEVELS)).abs().amin(-1) * scale
    assert ((sent(x, NormalFloat(group=32)) - x).abs() <= distance + 2e-3 * scale).all()
    assert len(LEVELS) == 16
    assert LEVELS == tuple(sorted(LEVELS))


@pytest.mark.parametrize("width", [1, 6, 16, 24, 64])
def test_the_rotation_is_orthonormal_and_its_own_inverse(width: int) -> None:
    x = normal(2, 5, width)
    torch.testing.assert_close(rotate(rotate(x)), x)
    torch.testing.assert_close(rotate(x).norm(dim=-1), x.norm(dim=-1))


def test_the_rotation_spreads_an_outlier() -> None:
    x = normal(2, 50, 64)
    x[..., 3] += 40
    errors = [(sent(x, codec) - x).norm() for codec in (Rotated(bits=2, group=64), Asymmetric(bits=2, group=64))]
    assert errors[0] < 0.7 * errors[1]


def test_kivi_keeps_recent_tokens_in_bf16() -> None:
    x = normal(2, 10, 16)
    restored = sent(x, Kivi(bits=1, window=4))
    assert torch.equal(restored[:, 6:], x[:, 6:].bfloat16().float())
    assert not torch.equal(restored[:, :6], x[:, :6].bfloat16().float())


def test_kivi_groups_keys_by_channel_and_values_by_token() -> None:
    by_channel = normal(1, 1, 16).expand(1, 8, 16).bfloat16().float()
    by_token = normal(1, 8, 1).expand(1, 8, 16).bfloat16().float()
    assert torch.equal(sent(by_channel, Kivi(bits=2, group=8), KEY), by_channel)
    assert torch.equal(sent(by_token, Kivi(bits=2, group=16), VALUE), by_token)
    assert not torch.equal(sent(by_channel, Kivi(bits=2, group=16), VALUE), by_channel)


def test_outliers_are_kept() -> None:
    x = normal(2, 25, 16)
    x[0, 3, 4], x[1, 20, 15] = 512.0, -300.0
    restored = sent(x, Outlier(bits=8, share=2 / 800))
    assert restored[0, 3, 4] == 512
    assert restored[1, 20, 15] == -300
    assert (restored - x).abs().max() < 0.02


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", CODECS)
def test_what_is_not_finite_is_refused_by_name(name: str, value: float) -> None:
    message = random_message()
    message.streams[Stream(2, "value")][1, 3, 5] = value
    with pytest.raises(MessageError, match="the values of layer 2 cannot be sent: they have NaN or infinity"):
        encode(message, CODECS[name])


@settings(deadline=None)
@given(st.integers(0, 300), st.floats(0.001, 0.25), st.integers(1, 40), st.integers(0, 2**32))
def test_outliers_are_the_largest_and_of_equal_ones_the_first(n: int, share: float, kinds: int, seed: int) -> None:
    """By Python's sort, of numbers with many ties, as those of bf16 have; every way of looking for them."""
    x = torch.randint(-kinds, kinds + 1, (3, n), generator=torch.Generator().manual_seed(seed)).bfloat16() / 8
    k = min(n, max(1, int(share * n)))
    rows = [sorted((-abs(number), at) for at, number in enumerate(row)) for row in x.tolist()]
    expected = [sorted(at for _, at in row[:k]) for row in rows]
    assert largest(x, k).tolist() == expected


@pytest.mark.parametrize("name", ["fp16", "asymmetric4", "asymmetric1", "kivi4", "nf4", "outlier2"])
def test_what_fp16_cannot_hold_is_refused(name: str) -> None:
    message = random_message()
    message.streams[Stream(5, "key")][0, 0, 0] = 1e5
    with pytest.raises(MessageError, match=r"the keys of layer 5 cannot be sent: the codec writes them, .*fp16; got 1"):
        encode(message, CODECS[name])


@pytest.mark.parametrize("name", ["fp32", "bf16", "int8"])
def test_large_numbers_can_be_sent_otherwise(name: str) -> None:
    x = torch.full((1, 2, 4), 1e5)
    torch.testing.assert_close(sent(x, NAMED[name]), x, rtol=1e-2, atol=0)


def test_huffman_coding_changes_the_length_only() -> None:
    message = random_message(n=200)
    for plain in (Symmetric(bits=2), Symmetric(bits=3), Symmetric(bits=4), Symmetric(bits=8)):
        coded = plain.model_copy(update={"entropy": True})
        blobs = encode(message, plain), encode(message, coded)
        assert len(blobs[1]) < len(blobs[0])
        for stream, x in decode(blobs[0]).streams.items():
            assert torch.equal(x, decode(blobs[1]).streams[stream])
