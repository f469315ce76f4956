"""Our grids beside those of the library's quantised caches: half a step from the numbers, a step from each other."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from nullarm.protocols.kv_communication.geometry import Half, Stream
from nullarm.protocols.kv_communication.wire.codec import Asymmetric, Codec, Kivi
from nullarm.protocols.kv_communication.wire.message import Message, decode, encode

GROUP = 32
X = torch.randn(1, 2, 64, 64, generator=torch.Generator().manual_seed(0))


def library(backend: str, axis: int, bits: int) -> Callable[[Tensor], Tensor]:
    """Quantise and dequantise, as the library's cache layer does with a backend."""
    pytest.importorskip({"Quanto": "optimum.quanto", "HQQ": "hqq"}[backend], reason=f"{backend} is not installed")
    layer_class = getattr(importlib.import_module("transformers.cache_utils"), f"{backend}QuantizedLayer")

    def there_and_back(x: Tensor) -> Tensor:
        layer: Any = layer_class(nbits=bits, axis_key=axis, axis_value=axis, q_group_size=GROUP)
        layer.lazy_initialization(x, x)
        restored: Tensor = layer._dequantize(layer._quantize(x, axis)).float()
        return restored

    return there_and_back


def ours(codec: Codec, half: Half) -> Tensor:
    stream = Stream(0, half)
    message = Message(64, torch.arange(64), {stream: X[0]})
    return decode(encode(message, codec)).streams[stream][None]


def steps(bits: int, along: int) -> Tensor:
    """Step of each number's group, the group lying along an axis."""
    groups = X.unflatten(along, (-1, GROUP))  # type: ignore[no-untyped-call]
    span = groups.amax(along + 1, keepdim=True) - groups.amin(along + 1, keepdim=True)
    step: Tensor = span.expand_as(groups).flatten(along, along + 1) / (2**bits - 1)
    return step


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("bits", [2, 4])
def test_keys_of_kivi_are_on_quantos_grid_along_tokens(bits: Any) -> None:
    theirs, step = library("Quanto", -1, bits)(X), steps(bits, 2)
    here = ours(Kivi(bits=bits, group=GROUP), "key")
    assert ((here - X).abs() <= 0.501 * step).all()
    assert ((here - theirs).abs() <= 1.01 * step).all()
    assert (here - X).norm() < 1.01 * (theirs - X).norm()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_asymmetric_groups_are_those_of_hqq_along_channels(bits: Any) -> None:
    """HQQ goes on to fit the zero point, so that its error may be somewhat less than that of extremes."""
    theirs, step = library("HQQ", 1, bits)(X), steps(bits, 3)
    here = ours(Asymmetric(bits=bits, group=GROUP), "value")
    assert ((here - X).abs() <= 0.51 * step).all()
    assert ((here - theirs).abs() <= 1.1 * step).all()
    assert (here - X).norm() < 1.1 * (theirs - X).norm()
