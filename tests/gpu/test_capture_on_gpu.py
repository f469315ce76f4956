"""Capture on a GPU: the tables of the CPU, both models at once or one at a time, and half precision in its range."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from support.pairs import captured, residual_study, save_model, scale_block, table

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

KEYS = ["prompt", "variant", "kind", "record", "layer", "position"]
MULTI: dict[str, Any] = {"multi_pass": {"enabled": True}}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    root = tmp_path_factory.mktemp("models")
    return save_model(root / "base"), save_model(root / "sft", scale_block(1))


def scalars(root: Path, pair: tuple[str, str], **parameters: Any) -> pd.DataFrame:
    store = captured(root, residual_study(pair[0], pair[1], **MULTI, **parameters))
    frame: pd.DataFrame = table(store, "tuned", "scalars").to_pandas()
    return frame


def test_the_tables_are_those_of_the_cpu(
    tmp_path: Path, pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as without:
        without.setattr(torch.cuda, "is_available", lambda: False)
        on_cpu = scalars(tmp_path / "cpu", pair)
    on_gpu = scalars(tmp_path / "gpu", pair)
    assert on_gpu[KEYS].equals(on_cpu[KEYS])
    numbers = [frame.drop(columns=[*KEYS, "rank", "overlap"]).to_numpy(np.float64) for frame in (on_cpu, on_gpu)]
    np.testing.assert_allclose(numbers[1], numbers[0], atol=2e-3, rtol=2e-3)


def test_one_model_at_a_time_gives_the_same(tmp_path: Path, pair: tuple[str, str]) -> None:
    together, apart = (scalars(tmp_path / p, pair, placement=p) for p in ("together", "sequential"))
    pd.testing.assert_frame_equal(together, apart, rtol=1e-5, atol=1e-6)


def test_half_precision_stays_in_its_range(tmp_path: Path, pair: tuple[str, str]) -> None:
    found = scalars(tmp_path / "bf16", pair, dtype="bfloat16")
    assert (found[["kl_div", "kl_reverse", "js", "entropy", "loss"]].stack() >= 0).all()
    assert found[["cosine", "cosine_prev"]].abs().max().max() <= 1
