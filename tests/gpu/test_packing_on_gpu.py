"""The wire on a GPU: the bytes of the CPU, packed there, and the numbers of the CPU, unpacked there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from nullarm.protocols.kv_communication.geometry import HALVES, Stream
from nullarm.protocols.kv_communication.wire.codec import (
    NAMED,
    Asymmetric,
    Kivi,
    NormalFloat,
    Outlier,
    Rotated,
    Symmetric,
)
from nullarm.protocols.kv_communication.wire.message import Message, decode, encode
from nullarm.protocols.kv_communication.wire.packing import pack, unpack

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

WIDTHS = (1, 2, 3, 4, 8)
CODECS: dict[str, Any] = {
    **NAMED,
    **{f"symmetric{b}": Symmetric(bits=b) for b in (2, 3)},
    **{f"asymmetric{b}": Asymmetric(bits=b) for b in WIDTHS},
    "asymmetric_uneven": Asymmetric(bits=3, group=24),
    "kivi2": Kivi(bits=2, group=32, window=5),
    "nf4": NormalFloat(),
    "outlier4": Outlier(),
    "huffman": Symmetric(bits=3, entropy=True),
}


def message(n: int = 77, dtype: torch.dtype = torch.float32) -> Message:
    rng = torch.Generator().manual_seed(0)
    streams = {Stream(k, h): torch.randn(2, n, 64, generator=rng).to(dtype) for k in range(3) for h in HALVES}
    return Message(n, torch.arange(n), streams)


def on_gpu(of: Message) -> Message:
    return replace(of, streams={stream: x.cuda() for stream, x in of.streams.items()})


@pytest.mark.parametrize("n", [1, 7, 64, 5000])
@pytest.mark.parametrize("bits", WIDTHS)
def test_codes_are_packed_as_on_the_cpu(bits: int, n: int) -> None:
    codes = torch.randint(2**bits, (3, n), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    packed = pack(codes.cuda(), bits)
    assert torch.equal(packed.cpu(), pack(codes, bits))
    assert torch.equal(unpack(packed, bits, n).cpu(), codes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CODECS)
def test_a_blob_is_that_of_the_cpu(name: str, dtype: torch.dtype) -> None:
    """Byte for byte: divisions are rounded alike. At one bit, means may differ."""
    of = message(dtype=dtype)
    blobs = encode(of, CODECS[name]), encode(on_gpu(of), CODECS[name])
    if name == "asymmetric1":
        for stream, x in decode(blobs[0]).streams.items():
            torch.testing.assert_close(decode(blobs[1]).streams[stream], x, atol=2e-3, rtol=0)
    else:
        assert blobs[0] == blobs[1]


def test_a_rotated_blob_gives_nearly_what_that_of_the_cpu_gives() -> None:
    """The rotation is a matrix product, whose order of summing is the library's."""
    of = message()
    theirs = decode(encode(on_gpu(of), Rotated(bits=8)))
    for stream, x in decode(encode(of, Rotated(bits=8))).streams.items():
        torch.testing.assert_close(theirs.streams[stream], x, atol=0.05, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CODECS)
def test_a_blob_is_read_as_on_the_cpu(name: str, dtype: torch.dtype) -> None:
    blob = encode(message(), CODECS[name])
    there = decode(blob, device="cuda", dtype=dtype)
    for stream, x in decode(blob, dtype=dtype).streams.items():
        assert there.streams[stream].is_cuda
        torch.testing.assert_close(
            there.streams[stream].cpu(), x, rtol=2**-7 if dtype == torch.bfloat16 else 1e-6, atol=1e-6
        )
