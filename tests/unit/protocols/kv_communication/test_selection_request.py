from __future__ import annotations

import pytest

from nullarm.errors import MessageError
from nullarm.protocols.kv_communication.selection.request import decode_request, encode_request, request_bytes


@pytest.mark.parametrize(
    ("positions", "tokens"), [([], 0), ([], 1), ([0], 1), ([7], 8), ([0, 8], 9), ([1, 2, 500], 501)]
)
def test_a_request_comes_back_and_has_the_bytes_that_are_charged(positions: list[int], tokens: int) -> None:
    blob = encode_request(positions, tokens)
    assert decode_request(blob) == positions
    assert len(blob) == request_bytes(tokens)


def test_a_request_costs_a_bit_a_token_and_a_header() -> None:
    assert request_bytes(0) == 13
    assert request_bytes(512) == 13 + 64


def test_its_bytes_are_what_they_were() -> None:
    assert (
        encode_request([0, 9], 10).hex() == "4e4b565201" + "0a000000" + encode_request([0, 9], 10)[9:13].hex() + "0102"
    )


def test_every_flipped_bit_and_every_cut_is_noticed() -> None:
    blob = encode_request([0, 3, 9], 12)
    for bit in range(8 * len(blob)):
        harmed = bytearray(blob)
        harmed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(MessageError):
            decode_request(bytes(harmed))
    for length in range(len(blob)):
        with pytest.raises(MessageError):
            decode_request(blob[:length])


@pytest.mark.parametrize(
    ("blob", "words"),
    [
        (b"NKVR", "the request is truncated; got '4 bytes'; valid: at least 13"),
        (b"XXXX" + encode_request([0], 8)[4:], r"this is no request of this version; got \(b'XXXX', 1\)"),
        (encode_request([0], 8) + b"\0", "the request has another length; got 15; valid: 14"),
        (encode_request([0], 8)[:-1] + b"\x03", "the request is damaged: its check sum is another; got "),
    ],
)
def test_what_is_wrong_with_a_request_is_said(blob: bytes, words: str) -> None:
    with pytest.raises(MessageError, match=words):
        decode_request(blob)
