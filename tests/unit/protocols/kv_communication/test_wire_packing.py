"""Codes of every width, packed and unpacked."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nullarm.protocols.kv_communication.wire.packing import pack, unpack
from nullarm.protocols.kv_communication.wire.planes import packed_bytes

WIDTHS = (1, 2, 3, 4, 8)


@settings(deadline=None)
@given(st.sampled_from(WIDTHS), st.integers(0, 41), st.integers(0, 3), st.integers(0, 2**32))
def test_codes_come_back(bits: int, n: int, rows: int, seed: int) -> None:
    codes = torch.randint(2**bits, (rows, n), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    packed = pack(codes, bits)
    assert packed.shape == (rows, packed_bytes(n, bits))
    assert torch.equal(unpack(packed, bits, n), codes)


@pytest.mark.parametrize("bits", WIDTHS)
def test_the_layout_is_that_of_the_page(bits: int) -> None:
    """Bit by bit, in Python: a layout that changes is another version of the format."""
    codes = [(7 * k + 3) % 2**bits for k in range(13)]
    expected = bytearray()
    for first, width in ((0, 2), (2, 1)) if bits == 3 else ((0, bits),):
        plane = bytearray(-(-len(codes) * width // 8))
        for j, code in enumerate(codes):
            plane[j % len(plane)] |= ((code >> first) & (2**width - 1)) << (width * (j // len(plane)))
        expected += plane
    assert bytes(pack(torch.tensor(codes, dtype=torch.uint8), bits).tolist()) == bytes(expected)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_packing_leaves_the_codes_as_they_were(bits: int) -> None:
    codes = torch.arange(16, dtype=torch.uint8) % 2**bits
    before = codes.clone()
    pack(codes, bits)[0] ^= 1
    assert torch.equal(codes, before)
