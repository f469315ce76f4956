"""The random state that dropout draws from: captured as plain tensors, restored exactly, scoped to a block."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

State = dict[str, torch.Tensor]


def capture(device: torch.device) -> State:
    """The states of torch (CPU and `device`), numpy's legacy generator and `random`, as tensors."""
    legacy: Any = np.random.get_state(legacy=False)  # noqa: NPY002 - what others may draw from is saved, too
    _, words, gauss = random.getstate()
    state = {
        "torch": torch.get_rng_state(),
        "numpy": torch.from_numpy(
            np.array([*legacy["state"]["key"], legacy["state"]["pos"], legacy["has_gauss"]], dtype=np.int64)
        ),
        "numpy_gauss": torch.tensor([legacy["gauss"]], dtype=torch.float64),
        "python": torch.tensor(words, dtype=torch.int64),
        # Empty: `random.gauss` holds nothing back.
        "python_gauss": torch.tensor([] if gauss is None else [gauss], dtype=torch.float64),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore(state: Mapping[str, torch.Tensor], device: torch.device) -> None:
    """Put every generator back to what `capture` saw."""
    torch.set_rng_state(state["torch"])
    *key, position, has_gauss = state["numpy"].tolist()
    np.random.set_state(  # noqa: NPY002
        {
            "bit_generator": "MT19937",
            "state": {"key": np.array(key, dtype=np.uint32), "pos": position},
            "has_gauss": has_gauss,
            "gauss": state["numpy_gauss"].item(),
        }
    )
    gauss = state["python_gauss"].tolist()
    random.setstate((3, tuple(state["python"].tolist()), gauss[0] if gauss else None))
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Run a block with every global generator seeded; the caller's generators are as before afterwards.

    Dropout draws from torch's global generator and takes no other, hence the scope.
    """
    before = capture(device)
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - library code below may still draw from it
    random.seed(seed)
    try:
        yield
    finally:
        restore(before, device)
