from collections.abc import Iterator
from typing import Any

import pytest

from nullarm.models.load import load_causal_lm

Loaded = tuple[Any, Any]


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NULLARM_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(scope="session")
def world_model() -> Loaded:
    """`builtin:world` and its tokeniser; do not change them."""
    return load_causal_lm("builtin:world")


@pytest.fixture(scope="session")
def tiny_llama() -> Loaded:
    """`random:tiny-llama` and its tokeniser; do not change them."""
    return load_causal_lm("random:tiny-llama")
