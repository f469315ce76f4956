"""The rank-mechanism path on a GPU: training, resuming and scoring, held against the CPU. `pytest -m gpu`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from nullarm.errors import Preempted
from nullarm.models.load import load_causal_lm
from nullarm.models.tasks.evaluate import evaluate
from nullarm.models.tasks.factory import make_task
from nullarm.protocols.rank_mechanism.lora import build_lora, target_modules
from nullarm.protocols.rank_mechanism.parameters import PROJECTIONS
from nullarm.training.batches import Batches
from nullarm.training.loop import FitResult, fit
from nullarm.training.settings import Precision, TrainSettings

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

TASK = make_task({"kind": "world_relations", "dev_items": 30, "test_items": 30})
STEPS = 12


def built(device: str, dropout: float = 0.0) -> tuple[Any, Any]:
    model, tokenizer = load_causal_lm("builtin:world", device=device)
    ranks = {module.name: 4 for module in target_modules(model, PROJECTIONS)}
    adapted = build_lora(
        model, ranks=ranks, alpha_rule="alpha=r", alpha=4, dropout=dropout, seed=3, init_seed_rank=4,
        task_type="CAUSAL_LM",
    )  # fmt: skip
    return adapted, tokenizer


def trained(
    directory: Path, *, device: str = "cuda", precision: Precision = "fp32", stop_after: int | None = None,
    dropout: float = 0.0,
) -> tuple[FitResult, Any, Any]:  # fmt: skip
    model, tokenizer = built(device, dropout)
    encoded = TASK.encode_training(tokenizer, TASK.items("train"))
    batches = Batches(encoded, batch_size=16, seed=1, pad_id=tokenizer.pad_token_id)
    settings = TrainSettings(steps=STEPS, batch_size=16, learning_rate=5e-3, checkpoint_every=5, precision=precision)
    asked = iter(range(10_000))
    result = fit(
        model, batches, settings, directory=directory, fingerprint="gpu", seed=2,
        should_stop=lambda: stop_after is not None and next(asked) >= stop_after,
    )  # fmt: skip
    return result, model, tokenizer


def test_losses_on_the_gpu_are_those_of_the_cpu(tmp_path: Path) -> None:
    on_gpu, _, _ = trained(tmp_path / "gpu")
    on_cpu, _, _ = trained(tmp_path / "cpu", device="cpu")
    assert on_gpu.losses == pytest.approx(on_cpu.losses, rel=2e-3)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_interrupted_run_ends_where_an_undisturbed_one_does(tmp_path: Path, precision: Precision) -> None:
    straight, _, _ = trained(tmp_path / "a", precision=precision, dropout=0.1)
    with pytest.raises(Preempted):
        trained(tmp_path / "b", precision=precision, stop_after=7, dropout=0.1)
    resumed, _, _ = trained(tmp_path / "b", precision=precision, dropout=0.1)
    assert resumed.resumed_from == 7
    assert resumed.losses == pytest.approx(straight.losses, rel=1e-3)


def test_scores_on_the_gpu_are_those_of_the_cpu() -> None:
    items = TASK.items("test")
    on_cpu, tokenizer = built("cpu")
    on_gpu, _ = built("cuda")
    cpu = evaluate(TASK, on_cpu, tokenizer, items, batch_size=16)
    gpu = evaluate(TASK, on_gpu, tokenizer, items, batch_size=16)
    assert [r.loss for r in gpu] == pytest.approx([r.loss for r in cpu], rel=1e-3)
    assert [r.correct for r in gpu] == [r.correct for r in cpu]
