"""What every cell begins with: the model, and its text as windows of tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from nullarm.errors import DatasetError, ModelError, Preempted
from nullarm.models.load import load_causal_lm
from nullarm.models.texts.factory import make_text
from nullarm.protocols.base import CellContext
from nullarm.protocols.low_rank.perplexity.streams import tokenise
from nullarm.protocols.low_rank.perplexity.windows import Window, windows


def device() -> str:
    """Where the work is done."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def model_of(context: CellContext) -> tuple[Any, Any]:
    """The study's model as it is loaded, and its tokeniser.

    Raises:
        ModelError: The model is missing or unreadable, or the study's windows are longer than its context.
    """
    asked = context.cell.parameters
    model, tokenizer = load_causal_lm(context.cell.settings["model"], dtype=asked["dtype"], device=device())
    most = getattr(model.config, "max_position_embeddings", None)
    if most is not None and asked.get("window", 0) > most:
        raise ModelError(
            "a window is longer than the model's context", value=asked["window"], valid=f"up to {most}",
            next_command="lower parameters.window",
        )  # fmt: skip
    return model, tokenizer


def calibration_batches(context: CellContext, tokenizer: Any) -> list[Tensor]:
    """The front of the train split, packed into full windows `[batch, window]`: documents follow one another.

    Raises:
        DatasetError: There is less text than one window.
    """
    asked, window = context.cell.parameters, int(context.cell.parameters["window"])
    ids: list[int] = []
    for document in make_text(context.cell.settings["text"]).documents("train"):
        ids += [*tokenizer(document.text, add_special_tokens=True)["input_ids"]]
        if len(ids) >= asked["calibration_tokens"]:
            break
    rows = min(len(ids), asked["calibration_tokens"]) // window
    if not rows:
        raise DatasetError(
            "the train split is shorter than a window", value=len(ids), valid=f"at least {window} tokens"
        )
    packed = torch.tensor(ids[: rows * window]).view(rows, window)
    return list(torch.split(packed, int(context.cell.settings["batch_size"])))


def evaluation_windows(context: CellContext, tokenizer: Any) -> list[Window]:
    """Windows over the front of the test split, each document from its own beginning.

    Raises:
        DatasetError: There is no text of two tokens.
    """
    asked = context.cell.parameters
    documents = make_text(context.cell.settings["text"]).documents("test")
    streams = tokenise(documents, tokenizer, joined=asked["joined"], limit=asked["evaluation_tokens"])
    found = windows(streams, length=asked["window"], stride=asked["stride"] or asked["window"])
    if not found:
        raise DatasetError("the test split has no document of two tokens", valid="longer documents")
    return found


def generator(context: CellContext, place: torch.device | str, *more: int) -> torch.Generator:
    """Random numbers of this cell on a device: other ones for each seed and draw of an arm, and for each of `more`."""
    seed = np.random.SeedSequence([context.cell.seed, context.cell.replicate or 0, *more]).generate_state(1, np.uint64)
    return torch.Generator(place).manual_seed(int(seed[0]))


def go_on(context: CellContext, before: str) -> None:
    """A safe point.

    Raises:
        Preempted: Somebody asked for a stop.
    """
    if context.should_stop():
        raise Preempted(f"asked to stop before {before}")
