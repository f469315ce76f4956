from collections.abc import Iterator
from typing import Any

import pytest
import torch

from nullarm.models.load import load_causal_lm

Loaded = tuple[Any, Any]


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NULLARM_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def world_model() -> Loaded:
    """`builtin:world` and its tokeniser; do not change them."""
    return load_causal_lm("builtin:world")


@pytest.fixture(scope="session")
def tiny_llama() -> Loaded:
    """`random:tiny-llama` and its tokeniser; do not change them."""
    return load_causal_lm("random:tiny-llama")
