"""Pairs of tiny models on disk, one of them changed on purpose, and small residual studies of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from nullarm.conduct import lay_down, prepare, run
from nullarm.engines.inline import InlineEngine
from nullarm.models.anatomy import anatomy
from nullarm.models.instantiate import instantiate, tokenizer_for
from nullarm.models.shapes import SHAPES
from nullarm.store.record import FinishedCell
from nullarm.store.study_store import StudyStore
from nullarm.study.spec import Study

PROMPTS = ("What is 3 + 4?", "Copy the letters a f c g.", "Mia has a red hat and a blue hat.", "no")

Change = Callable[[Any], None]


def save_model(path: Path, change: Change | None = None, *, name: str = "tiny-llama", seed: int = 1) -> str:
    """Write a random model of a tiny shape, with its tokeniser, changed or not; its reference."""
    model = instantiate(name, seed=seed, device="cpu")
    if change:
        with torch.no_grad():
            change(model)
    model.save_pretrained(path)
    tokenizer_for(SHAPES[name]).save_pretrained(path)
    return str(path)


def scale_block(block: int, factor: float = 1.3) -> Change:
    """Scale the weights of one block."""

    def change(model: Any) -> None:
        for weight in anatomy(model).blocks[block].parameters():
            weight.mul_(factor)

    return change


def other_embedding(model: Any) -> None:
    """Other token embeddings, all else as it was (the head must not be tied)."""
    weight = model.get_input_embeddings().weight
    weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(5)) * weight.std())


def residual_study(base: str, sft: str, **parameters: Any) -> Study:
    """One pair against its base beside itself."""
    return Study.model_validate(
        {
            "name": "pairs",
            "question": "Where is the change?",
            "protocol": "residual",
            "seeds": [0],
            "factors": {
                "pair": {
                    "tuned": {"role": "treatment"},
                    "same_model": {"role": "control", "null": "a model does not differ from itself"},
                }
            },
            "parameters": {
                "pairs": {"tuned": {"base": base, "sft": sft}, "same_model": {"base": base, "sft": base}},
                "prompts": PROMPTS,
                "top_k": 5,
                "whole_layer": {"resamples": 50},
                **parameters,
            },
            "analysis": {
                "metric": "js",
                "margin": 1e-4,
                "resamples": 200,
                "contrasts": [
                    {
                        "name": "change", "treatment": "tuned", "control": "same_model", "test": "paired_items",
                        "primary": True,
                    }
                ],
            },
        }
    )  # fmt: skip


def captured(root: Path, study: Study) -> StudyStore:
    """The study, all cells run in this process."""
    store = lay_down(prepare(study), root)
    result = run(store, InlineEngine())
    assert not result.failed, result.failed
    return store


def capture_of(store: StudyStore, arm: str) -> FinishedCell:
    """The finished capture of an arm."""
    cell = next(cell for cell in store.plan if cell.arm == arm and cell.stage == "capture")
    finished = store.finished(cell.id)
    assert finished is not None
    return finished


def table(store: StudyStore, arm: str, name: str) -> pa.Table:
    """A table of the capture of an arm."""
    return capture_of(store, arm).table(name)
