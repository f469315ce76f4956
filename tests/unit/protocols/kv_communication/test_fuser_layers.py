from __future__ import annotations

import subprocess
import sys

import pytest

from nullarm.errors import StudyError
from nullarm.protocols.kv_communication.fuser import k_nearest, last_aligned, layer_map


@pytest.mark.parametrize(
    ("source_layers", "target_layers", "sources"),
    [
        (4, 4, [0, 1, 2, 3]),
        (24, 28, [0, 0, 0, 0, *range(24)]),
        (36, 28, list(range(8, 36))),
        (1, 3, [0, 0, 0]),
    ],
)
def test_last_aligned(source_layers: int, target_layers: int, sources: list[int]) -> None:
    found = last_aligned(source_layers, target_layers)
    assert found == {t: (s,) for t, s in enumerate(sources)}


@pytest.mark.parametrize(
    ("source_layers", "target_layers", "k", "sources"),
    [
        (3, 3, 1, [(0,), (1,), (2,)]),
        (3, 5, 1, [(0,), (0,), (1,), (1,), (2,)]),  # depths ¼ and ¾ are as near to both neighbours: the lower
        (5, 3, 1, [(0,), (2,), (4,)]),
        (5, 3, 2, [(0, 1), (1, 2), (3, 4)]),
        (3, 2, 3, [(0, 1, 2), (0, 1, 2)]),
        (1, 2, 1, [(0,), (0,)]),
        (3, 1, 1, [(0,)]),
    ],
)
def test_k_nearest(source_layers: int, target_layers: int, k: int, sources: list[tuple[int, ...]]) -> None:
    assert k_nearest(source_layers, target_layers, k) == dict(enumerate(sources))


@pytest.mark.parametrize("k", [0, 4])
def test_k_out_of_range_is_refused(k: int) -> None:
    with pytest.raises(StudyError, match=f"k of layer map k_nearest is out of range; got {k}; valid: from 1 to 3"):
        k_nearest(3, 5, k)


def test_maps_are_found_by_name() -> None:
    assert layer_map("last_aligned", 24, 28) == last_aligned(24, 28)
    assert layer_map("k_nearest", 24, 28, sources=2) == k_nearest(24, 28, 2)
    with pytest.raises(StudyError, match="layer map last_aligned has one source for each layer; got 2; valid: 1, or"):
        layer_map("last_aligned", 24, 28, sources=2)


def test_maps_load_no_torch_and_the_rest_is_there_when_asked_for() -> None:
    code = """
import sys
from nullarm.protocols.kv_communication import fuser
fuser.last_aligned(2, 2)
assert "torch" not in sys.modules
assert all(getattr(fuser, name) is not None for name in fuser.__all__)
assert "torch" in sys.modules
fuser.nothing
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == (
        "AttributeError: module 'nullarm.protocols.kv_communication.fuser' has no attribute 'nothing'"
    )
