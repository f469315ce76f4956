"""Messages: what is in a blob, what it weighs, what is read from it."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from wire_messages import CODECS, any_codec, random_message

from nullarm.errors import MessageError
from nullarm.protocols.kv_communication.geometry import HALVES, Geometry, Stream
from nullarm.protocols.kv_communication.wire.codec import NAMED, Asymmetric, Codec, Kivi, Symmetric, widths
from nullarm.protocols.kv_communication.wire.message import Message, decode, decode_many, encode, encode_many
from nullarm.protocols.kv_communication.wire.size import message_bytes, stream_bytes


def assert_equal(a: Message, b: Message) -> None:
    assert a.tokens == b.tokens
    assert torch.equal(a.positions, b.positions)
    assert list(a.streams) == list(b.streams)
    for stream, x in a.streams.items():
        assert torch.equal(x, b.streams[stream]), stream


@settings(deadline=None)
@given(st.data())
def test_the_formula_is_the_length_of_the_blob(data: st.DataObject) -> None:
    codec = data.draw(any_codec)
    geometry = Geometry(4, data.draw(st.integers(1, 3)), data.draw(st.sampled_from([1, 2, 5, 16, 24, 33])))
    streams = data.draw(st.lists(st.sampled_from(geometry.streams), unique=True))
    tokens = data.draw(st.integers(0, 40))
    kept = sorted(data.draw(st.sets(st.integers(0, tokens - 1)))) if tokens else []
    bits = {s: data.draw(st.sampled_from(widths(codec))) for s in streams} if data.draw(st.booleans()) else None
    rng = torch.Generator().manual_seed(0)
    numbers = {s: torch.randn(geometry.heads, len(kept), geometry.head_dim, generator=rng) for s in streams}
    blob = encode(Message(tokens, torch.tensor(kept, dtype=torch.int64), numbers), codec, bits)
    contiguous = not kept or kept == list(range(kept[0], kept[-1] + 1))
    assert len(blob) == message_bytes(
        geometry, codec, streams=streams, tokens=tokens, sent=len(kept), contiguous=contiguous, bits=bits
    )
    back = decode(blob)
    assert list(back.streams) == sorted(streams)
    assert back.positions.tolist() == (kept if streams else [])
    assert back.tokens == tokens
    assert all(x.shape == numbers[s].shape for s, x in back.streams.items())


def test_the_formula_needs_no_numbers_but_entropy_coding_does() -> None:
    options: dict[str, Any] = {"tokens": 9, "sent": 9, "contiguous": True}
    geometry = Geometry(2, 2, 16)
    assert message_bytes(geometry, Symmetric(entropy=True), streams=geometry.streams, **options) is None
    assert stream_bytes(geometry, Symmetric(bits=4), 4, 9) == 2 * 4 + 9 * 2 * 16 // 2
    key, value = (stream_bytes(Geometry(2, 2, 16), Kivi(group=8), 2, 9, half=half) for half in HALVES)
    assert (key, value) == (72 + 2 * 2 * 2 * 2 * 16, 72 + 2 * 2 * 2 * 9 * 2)


def test_planning_does_not_import_torch() -> None:
    module = "nullarm.protocols.kv_communication.wire.size"
    subprocess.run([sys.executable, "-c", f"import sys, {module}; assert 'torch' not in sys.modules"], check=True)


@pytest.mark.parametrize("positions", [None, [0, 1, 5, 11], [4, 5, 6], [], [19]])
@pytest.mark.parametrize("name", CODECS)
def test_positions_and_shapes_come_back(name: str, positions: list[int] | None) -> None:
    message = random_message(7 if positions is None else len(positions), positions=positions, tokens=20)
    back = decode(encode(message, CODECS[name]))
    assert back.tokens == 20
    assert torch.equal(back.positions, message.positions)
    assert list(back.streams) == sorted(message.streams)
    assert all(x.shape == message.streams[s].shape for s, x in back.streams.items())


@pytest.mark.parametrize("name", CODECS)
def test_many_are_as_each_one_alone(name: str) -> None:
    codec = CODECS[name]
    messages = [random_message(n, seed=seed) for seed, n in enumerate((7, 4, 7, 0, 7))]
    messages.append(random_message(7, positions=[1, 2, 3, 5, 8, 13, 14], tokens=15, layers=(1,)))
    blobs = encode_many(messages, codec)
    assert blobs == [encode(message, codec) for message in messages]
    for together, alone in zip(decode_many(blobs), map(decode, blobs), strict=True):
        assert_equal(together, alone)


def test_large_messages_are_worked_on_in_cuts() -> None:
    """As the processor's cache asks for; rows are independent, so that cuts change nothing."""
    message = random_message(700, head_dim=64)
    codec = Asymmetric(bits=3)
    whole = decode(encode(message, codec))
    for stream, x in message.streams.items():
        alone = decode(encode(Message(700, message.positions, {stream: x}), codec))
        assert torch.equal(whole.streams[stream], alone.streams[stream])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("name", CODECS)
def test_numbers_come_in_the_dtype_that_is_asked_for(name: str, dtype: torch.dtype) -> None:
    blob = encode(random_message(), CODECS[name])
    for stream, x in decode(blob, dtype=dtype).streams.items():
        assert torch.equal(x, decode(blob).streams[stream].to(dtype))


@pytest.mark.parametrize("name", CODECS)
def test_bf16_is_encoded_as_its_numbers(name: str) -> None:
    message = random_message()
    half = Message(7, message.positions, {s: x.bfloat16() for s, x in message.streams.items()})
    single = Message(7, message.positions, {s: x.float() for s, x in half.streams.items()})
    assert encode(half, CODECS[name]) == encode(single, CODECS[name])


@pytest.mark.parametrize("name", CODECS)
def test_a_message_stays_as_it_was(name: str) -> None:
    message = random_message()
    before = {s: x.clone() for s, x in message.streams.items()}
    encode(message, CODECS[name])
    assert all(torch.equal(before[s], x) for s, x in message.streams.items())


def test_parts_of_a_cache_need_not_be_contiguous() -> None:
    cache = torch.randn(2, 20, 3, 16).transpose(1, 2)
    view, copy = ({Stream(0, "key"): x[1, :, ::2]} for x in (cache, cache.contiguous()))
    positions = torch.arange(10)
    blobs = [encode(Message(10, positions, streams), Asymmetric()) for streams in (view, copy)]
    assert blobs[0] == blobs[1]


def test_bits_by_stream() -> None:
    message = random_message(layers=(0, 1))
    bits = {s: width for s, width in zip(sorted(message.streams), (8, 2, 1, 8), strict=True)}
    back = decode(encode(message, Asymmetric(), bits)).streams
    assert list(back) == sorted(bits)
    for stream, width in bits.items():
        alone = Message(7, message.positions, {stream: message.streams[stream]})
        assert torch.equal(back[stream], decode(encode(alone, Asymmetric(bits=width))).streams[stream])


def test_no_stream_is_no_tokens() -> None:
    """All gates closed: nothing crosses but the length of the sequence."""
    blob = encode(Message(300, torch.arange(300), {}), Symmetric())
    assert len(blob) == message_bytes(
        Geometry(2, 2, 16), Symmetric(), streams=(), tokens=300, sent=300, contiguous=True
    )
    back = decode(blob)
    assert (back.tokens, back.streams, len(back.positions)) == (300, {}, 0)


def test_a_layer_that_several_layers_read_is_on_the_wire_once() -> None:
    """The original counted bytes by layer of the receiver; a message has no place for a second copy."""
    geometry, n = Geometry(3, 2, 16), 10
    once = len(encode(random_message(n, layers=(2,)), NAMED["bf16"]))
    read_by_receiver = [2, 2, 2, 2]
    streams = {Stream(layer, half) for layer in read_by_receiver for half in HALVES}
    assert once == 44 + 2 * 4 + 2 * geometry.width * n * 2 + 4
    assert once == message_bytes(geometry, NAMED["bf16"], streams=sorted(streams), tokens=n, sent=n, contiguous=True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"positions": torch.tensor([0, 2, 1])}, "positions are not ascending within 3 tokens"),
        ({"positions": torch.tensor([0, 1, 3])}, "positions are not ascending within 3 tokens"),
        ({"positions": torch.arange(2)}, r"are not all \[heads, 2 tokens, head_dim\]"),
    ],
)
def test_what_does_not_go_together_is_refused(change: dict[str, Any], words: str) -> None:
    message = random_message(3)
    with pytest.raises(ValueError, match=words):
        encode(Message(3, change["positions"], message.streams), Symmetric())


@pytest.mark.parametrize(("name", "width"), [("int8", 1), ("nf4", 3), ("bf16", 8), ("asymmetric4", 5)])
def test_widths_that_a_codec_does_not_have_are_refused(name: str, width: int) -> None:
    message, codec = random_message(), CODECS[name]
    with pytest.raises(ValueError, match=rf"codec {codec.kind} has codes of .* bits, not \[{width}\]"):
        encode(message, codec, dict.fromkeys(message.streams, width))


def test_a_layer_past_the_format_is_refused() -> None:
    message = Message(1, torch.arange(1), {Stream(70_000, "key"): torch.ones(1, 1, 1)})
    with pytest.raises(MessageError, match="too much for a message"):
        encode(message, Symmetric())


def test_every_codec_kind_is_in_the_table_of_tests() -> None:
    kinds: set[str] = {codec.kind for codec in CODECS.values()}
    assert kinds == {"raw", "symmetric", "asymmetric", "rotated", "kivi", "nf4", "outlier"}
    coded: list[Codec] = [c for c in CODECS.values() if getattr(c, "entropy", False)]
    assert len(coded) == 4
