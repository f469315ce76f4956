"""Methods are data with a kind, which say what they need and what they cost."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from nullarm.protocols.low_rank.methods.rounding import round_to_nearest
from nullarm.protocols.low_rank.methods.settings import Asvd, Grc, LowRank, Method, RoundToNearest, SvdLlm, WhitenedGrc

METHODS: TypeAdapter[LowRank | RoundToNearest] = TypeAdapter(Method)


@pytest.mark.parametrize(
    ("data", "method", "shared", "needs"),
    [
        ({"kind": "grc", "normalised": False}, Grc(normalised=False), True, "nothing"),
        ({"kind": "asvd"}, Asvd(alpha=0.5), False, "scales"),
        ({"kind": "svd_llm", "ridge": 0.01}, SvdLlm(ridge=0.01), False, "gram"),
        ({"kind": "whitened_grc"}, WhitenedGrc(ridge=1e-4), True, "gram"),
        ({"kind": "round_to_nearest", "bits": 4}, RoundToNearest(bits=4, block=64), False, "nothing"),
    ],
)
def test_a_method_is_read_by_its_kind(data: dict[str, Any], method: LowRank, shared: bool, needs: str) -> None:
    found = METHODS.validate_python(data)
    assert found == method
    assert (found.shared, found.needs) == (shared, needs)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"kind": "pca"}, "'grc', 'svd', 'asvd', 'svd_llm', 'whitened_grc', 'round_to_nearest'"),
        ({"kind": "svd", "ridge": 1}, "Extra inputs are not permitted"),
        ({"kind": "svd_llm", "ridge": 0}, "greater than 0"),
        ({"kind": "round_to_nearest", "bits": 3}, "Input should be 8 or 4"),
    ],
)
def test_a_method_that_is_not_there_is_refused(data: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        METHODS.validate_python(data)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("width", [63, 64, 65, 160])
def test_bytes_of_rounding_are_known_before_it_is_done(bits: Any, width: int) -> None:
    weight = torch.randn(5, width, generator=torch.Generator().manual_seed(0))
    rounded = round_to_nearest(weight, bits, 32, slot="q")
    assert rounded.nbytes == RoundToNearest(bits=bits, block=32).bytes(5, width)


def test_settings_load_no_torch() -> None:
    code = "import sys; import nullarm.protocols.low_rank.methods.settings; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
