"""What was once written is read for ever. tests/golden/wire/make.py makes blobs that are missing, and no other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nullarm.protocols.kv_communication.wire.message import decode

GOLDEN = Path(__file__).parents[3] / "golden" / "wire"
BLOBS = sorted(GOLDEN.glob("*.bin"))


def test_every_kind_of_codec_has_one() -> None:
    kinds = {blob.read_bytes()[6] for blob in BLOBS}
    assert kinds == set(range(7))


@pytest.mark.parametrize("path", BLOBS, ids=lambda p: p.stem)
def test_a_golden_blob_gives_its_numbers(path: Path) -> None:
    expected = load_file(path.with_suffix(".safetensors"))
    message = decode(path.read_bytes())
    assert message.tokens == 11
    assert torch.equal(message.positions, expected.pop("positions"))
    assert {f"{s.layer}.{s.half}" for s in message.streams} == expected.keys()
    for stream, x in message.streams.items():
        torch.testing.assert_close(x, expected[f"{stream.layer}.{stream.half}"], rtol=1e-6, atol=1e-6)
