"""The cell that trains the translators of one model, shared by all arms that read it."""

from __future__ import annotations

from typing import Any

import torch

from nullarm.models.anatomy import anatomy
from nullarm.models.load import load_causal_lm
from nullarm.models.tasks.base import Encoded
from nullarm.protocols.base import CellContext, CellResult
from nullarm.protocols.residual.capture.tuned_lens import Translators, mean_divergence, train_translators
from nullarm.protocols.residual.parameters import TunedLens
from nullarm.protocols.residual.reading.tokens import read
from nullarm.training.batches import Batches
from nullarm.training.settings import TrainSettings

TRANSLATORS = "translators"
"""Artefact: one safetensors file."""


def run_tune_lens(context: CellContext) -> CellResult:
    """Train the translators on the study's prompts, and say how far the lens is from the model before and after.

    Raises:
        Preempted: Asked to stop; a checkpoint is on disk.
        ModelError: The model is not to be had, or has only one block.
        InvalidResult: The loss is not finite.
    """
    cell, asked = context.cell, context.cell.parameters
    knobs = TunedLens.model_validate(asked["tuned_lens"])
    model, tokenizer = load_causal_lm(
        cell.settings["model"],
        base=cell.settings["base"],
        tokenizer=cell.settings["tokenizer"],
        dtype=asked["dtype"],
        device="cuda" if torch.cuda.is_available() else "cpu",
        model_kwargs=asked["model_kwargs"],
        tokenizer_kwargs=asked["tokenizer_kwargs"],
    )
    rows, _ = read(
        tokenizer, cell.settings["prompts"], seed=cell.seed, chat_template=asked["chat_template"],
        add_bos=asked["add_bos"],
    )  # fmt: skip
    items = [Encoded(list(row.ids), list(row.ids)) for row in rows]
    batches = Batches(items, batch_size=knobs.batch_size, seed=cell.seed, pad_id=tokenizer.pad_token_id)
    parts = anatomy(model)
    found = train_translators(
        parts,
        batches,
        TrainSettings(steps=knobs.steps, batch_size=knobs.batch_size, learning_rate=knobs.learning_rate),
        directory=context.writer.paths.scratch / "checkpoints",
        fingerprint=cell.id,
        seed=cell.seed,
        should_stop=context.should_stop,
    )
    first: Any = {name: tensor.to(parts.head.weight.device) for name, tensor in batches.batch(0).items()}
    nothing = Translators.identity(len(parts.blocks), parts.head.in_features).to(parts.head.weight.device)
    context.writer.file_artefact(TRANSLATORS, "safetensors", found.save)
    with torch.no_grad():
        before, after = (float(mean_divergence(parts, translators, first)) for translators in (nothing, found))
    return CellResult({"divergence_untrained": before, "divergence": after})
