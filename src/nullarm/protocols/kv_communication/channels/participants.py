"""The models and fusers of a cell, loaded."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from nullarm.models.load import load_causal_lm
from nullarm.protocols.base import CellContext
from nullarm.protocols.kv_communication.fuser import Fuser, load_fuser
from nullarm.protocols.kv_communication.fuser.reference import local_directory
from nullarm.protocols.kv_communication.geometry import Geometry


@dataclass(frozen=True)
class Participant:
    """A frozen model with its tokeniser."""

    model: Any
    tokenizer: Any

    @cached_property
    def geometry(self) -> Geometry:
        """Of its cache."""
        return Geometry.of(self.model.config)


def load_participant(context: CellContext, ref: str) -> Participant:
    """A model of the cell, in evaluation mode, frozen.

    Raises:
        ModelError: It cannot be loaded.
    """
    model, tokenizer = load_causal_lm(ref, dtype=str(context.cell.parameters["dtype"]), device=device())
    return Participant(model.requires_grad_(False), tokenizer)


def receiver_of(context: CellContext) -> Participant:
    """The model that answers."""
    return load_participant(context, context.cell.settings["receiver"])


def sharer_of(context: CellContext, name: str) -> Participant:
    """A model that sends, by its name."""
    return load_participant(context, context.cell.settings["sharers"][name])


def fuser_of(context: CellContext, name: str) -> Fuser:
    """A fuser of the cell, trained by an earlier one or elsewhere, in evaluation mode.

    Raises:
        ModelError: It cannot be loaded.
    """
    dtype = getattr(torch, context.cell.parameters["dtype"])
    return load_fuser(fuser_directory(context, name), device=device(), dtype=dtype).eval().requires_grad_(False)


def fuser_directory(context: CellContext, name: str) -> Path:
    """Of a fuser that an earlier cell has trained, or that was trained elsewhere.

    Raises:
        ModelError: It cannot be had.
    """
    need = context.needs.get(f"fuser:{name}")
    return need.artefact("fuser") if need else local_directory(context.cell.settings["fusers"][name]["directory"])


def check_fit(fusers: Sequence[Fuser], sharers: Sequence[Participant], receiver: Participant) -> None:
    """Refuse fusers that were made for other models.

    Raises:
        ModelError: One does not fit.
    """
    for fuser, sharer in zip(fusers, sharers, strict=True):
        fuser.check_fits(sharer.geometry, receiver.geometry)


def device() -> str:
    """Where the work is done; of several processes of one machine, each has a device of its own."""
    if not torch.cuda.is_available():
        return "cpu"
    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    return f"cuda:{torch.cuda.current_device()}"
