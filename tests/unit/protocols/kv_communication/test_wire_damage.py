"""Whatever happens to a blob, reading it gives the message or a `MessageError`: no garbage, no other error, no memory.

Each of the two property tests tries 300 blobs; with `NULLARM_WIRE_DAMAGES=10000` in the environment, so many.
"""

from __future__ import annotations

import contextlib
import os
import struct
import tracemalloc
import zlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from wire_messages import CODECS, random_message, sealed

from nullarm.errors import MessageError
from nullarm.protocols.kv_communication.wire.codec import Asymmetric, Outlier, Symmetric
from nullarm.protocols.kv_communication.wire.header import VERSION
from nullarm.protocols.kv_communication.wire.message import decode, decode_many, encode

damages = settings(
    max_examples=int(os.environ.get("NULLARM_WIRE_DAMAGES", "300")),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
BLOBS = {name: encode(random_message(5, positions=[0, 1, 2, 5, 6], tokens=9), codec) for name, codec in CODECS.items()}
TABLE = 44


@damages
@given(st.sampled_from(sorted(BLOBS)), st.data())
def test_a_damaged_blob_is_refused(name: str, data: st.DataObject) -> None:
    """Truncated, with bits flipped, with a stretch overwritten, or with bytes too many."""
    blob = bytearray(BLOBS[name])
    match data.draw(st.sampled_from(["cut", "flip", "overwrite", "append"])):
        case "cut":
            del blob[data.draw(st.integers(0, len(blob) - 1)) :]
        case "flip":
            for at in data.draw(st.lists(st.integers(0, 8 * len(blob) - 1), min_size=1, max_size=8, unique=True)):
                blob[at // 8] ^= 1 << at % 8
        case "overwrite":
            at, new = data.draw(st.integers(0, len(blob) - 8)), data.draw(st.binary(min_size=1, max_size=8))
            blob[at : at + len(new)] = new
        case _:
            blob += data.draw(st.binary(min_size=1, max_size=40))
    if bytes(blob) != BLOBS[name]:
        with pytest.raises(MessageError):
            decode(bytes(blob))


@damages
@given(st.sampled_from(sorted(BLOBS)), st.data())
def test_a_blob_with_a_forged_checksum_is_read_or_refused(name: str, data: st.DataObject) -> None:
    """The checksum is right, the rest is not: any other error is a fault, and so is memory that no bytes stand for."""
    body = bytearray(BLOBS[name][:-4])
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(6, min(len(body), TABLE + 40) - 1))
        body[at] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del body[data.draw(st.integers(6, len(body))) :]
    tracemalloc.start()
    try:
        with contextlib.suppress(MessageError):
            message = decode(sealed(bytes(body)))
            assert sum(x.numel() for x in message.streams.values()) <= 64 * len(body)  # eight codes a Huffman-coded bit
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_every_byte_of_a_blob_counts() -> None:
    blob = BLOBS["asymmetric3"]
    for at in range(len(blob)):
        with pytest.raises(MessageError):
            decode(blob[:at] + bytes([blob[at] ^ 0x10]) + blob[at + 1 :])
        with pytest.raises(MessageError):
            decode(blob[:at])


def test_a_newer_message_says_what_this_nullarm_reads() -> None:
    body = bytearray(BLOBS["int8"][:-4])
    struct.pack_into("<H", body, 4, VERSION + 1)
    with pytest.raises(MessageError, match=r"of another version; got 2; valid: this nullarm reads version 1") as e:
        decode(sealed(bytes(body)))
    assert e.value.exit_code == 16


@pytest.mark.parametrize("blob", [b"", b"NLKV", b"PK\3\4" + bytes(60)])
def test_what_is_no_message_is_refused(blob: bytes) -> None:
    with pytest.raises(MessageError, match="do not begin as a message does"):
        decode(blob)


@pytest.mark.parametrize(
    ("at", "layout", "value", "words"),
    [
        (6, "B", 9, "its header cannot be read"),
        (7, "B", 5, "its header cannot be read"),
        (10, "H", 65535, "its header cannot be read"),
        (9, "B", 7, "its header contradicts itself"),
        (20, "I", 3, "its header contradicts itself"),
        (14, "H", 0, "its streams have no width"),
        (14, "H", 65535, "it should have .* bytes and more"),
        (36, "I", 2**32 - 1, "it has tokens up to 4294967295 of 7"),
        (TABLE, "H", 9, "out of order"),
        (TABLE, "H", 2, "its header contradicts itself"),
        (TABLE + 3, "B", 1, "out of order, or has widths that its codec does not"),
    ],
)
def test_an_absurd_header_is_refused(at: int, layout: str, value: int, words: str) -> None:
    body = bytearray(encode(random_message(7), Symmetric(bits=4))[:-4])
    struct.pack_into(f"<{layout}", body, at, value)
    with pytest.raises(MessageError, match=words):
        decode(sealed(bytes(body)))


def test_a_bitmap_has_the_tokens_that_the_header_counts() -> None:
    blob = encode(random_message(2, positions=[0, 3], tokens=7, layers=(0,)), Symmetric())
    for bitmap in (0b1000, 0b1011, 0b10001000):
        body = bytearray(blob[:-4])
        assert body[TABLE + 8] == 0b1001
        body[TABLE + 8] = bitmap
        with pytest.raises(MessageError, match="its bitmap"):
            decode(sealed(bytes(body)))


def test_a_codec_without_its_streams_cannot_claim_tokens() -> None:
    body = bytearray(encode(random_message(0, layers=()), Symmetric())[:-4])
    struct.pack_into("<II", body, 32, 2**32 - 1, 2**32 - 1)
    with pytest.raises(MessageError, match="it has tokens and no stream"):
        decode(sealed(bytes(body)))


def test_places_of_outliers_are_checked() -> None:
    blob = encode(random_message(3, layers=(0,)), Outlier(share=0.03))
    start = TABLE + 8
    assert struct.unpack_from("<3I", blob, start)[0] < 96
    for places in ((5, 5, 6), (7, 6, 5), (1, 2, 96), (1, 2, 2**31)):
        body = bytearray(blob[:-4])
        struct.pack_into("<3I", body, start, *places)
        with pytest.raises(MessageError, match="places of outliers are out of order or out of range"):
            decode(sealed(bytes(body)))


def test_bounds_that_are_not_finite_are_refused() -> None:
    body = bytearray(encode(random_message(3, layers=(0,)), Asymmetric())[:-4])
    struct.pack_into("<e", body, TABLE + 8, float("inf"))
    with pytest.raises(MessageError, match="it has NaN or infinity"):
        decode(sealed(bytes(body)))


def test_a_bomb_is_not_inflated() -> None:
    """Deflate can pack zeros a thousand times; Huffman codes alone cannot pack bytes more than eight times."""
    message = random_message(2000, layers=(0,))
    plain = encode(message, Asymmetric(bits=8))
    header, streams = bytearray(plain[: TABLE + 8]), 2000 * 2 * 16
    header[8] = 1
    bounds = plain[TABLE + 8 :][: 2 * 2 * 2000 * 2]
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = deflate.compress(bytes(streams)) + deflate.flush()
    for claimed in (len(bomb), 2**32 - 1):
        body = bytes(header) + bounds + claimed.to_bytes(4, "little") + bomb
        with pytest.raises(MessageError, match="bytes of codes cannot be in"):
            decode(sealed(body))


@pytest.mark.parametrize("name", [n for n in BLOBS if n.startswith("huffman")])
def test_codes_of_another_length_are_refused(name: str) -> None:
    """The streams of keys and of values are each behind their length; here the last one is made another."""
    body = BLOBS[name][:-4]
    start = next(k for k in range(TABLE, len(body)) if int.from_bytes(body[k : k + 4], "little") == len(body) - k - 4)
    codes = zlib.decompress(body[start + 4 :], -15)
    for other, words in ((codes[:-1], "when decompressed"), (codes + b"1", "when decompressed"), (None, "cannot be")):
        stream = b"\xff" * len(body) if other is None else huffman(other)
        with pytest.raises(MessageError, match=words):
            decode(sealed(body[:start] + len(stream).to_bytes(4, "little") + stream))


def huffman(codes: bytes) -> bytes:
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_HUFFMAN_ONLY)
    return deflate.compress(codes) + deflate.flush()


def test_one_damaged_blob_among_many_is_refused() -> None:
    with pytest.raises(MessageError, match="the checksum of its"):
        decode_many([BLOBS["int4"], BLOBS["int4"][:-1], BLOBS["int8"]])
