"""The two models of a pair: loaded, one of them made noise where that is the control, moved where they have to be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch

from nullarm.errors import ModelError
from nullarm.models.anatomy import Anatomy, anatomy
from nullarm.models.load import load_causal_lm
from nullarm.protocols.residual.runs import Side
from nullarm.study.plan import Cell


@dataclass(frozen=True)
class Loaded:
    """One model with its tokeniser."""

    anatomy: Anatomy
    tokenizer: Any

    @property
    def layers(self) -> int:
        """Number of blocks."""
        return len(self.anatomy.blocks)

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return int(self.anatomy.head.in_features)


@dataclass(frozen=True)
class PairModels:
    """Both models.

    Attributes:
        base: The base model.
        sft: The fine-tuned one; the same object when a model is paired with itself.
        device: Where the work is done.
        apart: Blocks wait in main memory and come to the device one model at a time.
    """

    base: Loaded
    sft: Loaded
    device: torch.device
    apart: bool = False

    def of(self, side: Side) -> Loaded:
        """The model of a side."""
        return self.base if side == "base" else self.sft

    @contextmanager
    def body(self, side: Side) -> Iterator[Anatomy]:
        """Within, the blocks of `side` are on the device."""
        own = self.of(side).anatomy
        if not self.apart:
            yield own
            return
        own.blocks.to(self.device)
        try:
            yield own
        finally:
            own.blocks.to("cpu")


def load_pair(cell: Cell, rng_seed: int) -> PairModels:
    """Load the models that a cell names.

    On a GPU, blocks lie apart when the settings say so, or when both models would not fit into what is free.

    Args:
        cell: Its settings have the references, its parameters dtype and arguments.
        rng_seed: Of the noise, where the fine-tuned side is noise.

    Raises:
        ModelError: A model is missing, unreadable or of an unknown architecture, or noise cannot be matched.
    """
    settings, device = cell.settings, torch.device("cuda" if torch.cuda.is_available() else "cpu")
    apart = _apart(settings["placement"], settings["together_bytes"], device)
    device_map = settings["device_map"]
    options: dict[str, Any] = {
        "dtype": cell.parameters["dtype"],
        "device": "cpu" if apart else str(device),
        "tokenizer": settings["tokenizer"],
        "model_kwargs": {**cell.parameters["model_kwargs"], **({"device_map": device_map} if device_map else {})},
        "tokenizer_kwargs": cell.parameters["tokenizer_kwargs"],
    }
    base = _loaded(*load_causal_lm(settings["base"], **options))
    noise = cell.parameters["sft_weights"] == "matched_noise"
    if settings["sft"] == settings["base"] and not noise:
        sft = base
    else:
        sft = _loaded(*load_causal_lm(settings["sft"], base=settings["base"], **options))
    if noise:
        match_noise(sft.anatomy.model, base.anatomy.model, rng_seed)
    models = PairModels(base, sft, device, apart)
    if apart:
        _move_all_but_blocks(models)
    return models


@torch.no_grad()
def match_noise(model: torch.nn.Module, base: torch.nn.Module, seed: int) -> None:
    """Replace what training made of the base by Gaussian noise of the same size, tensor by tensor.

    W ← W_base + ‖W − W_base‖_F · G / ‖G‖_F, G standard normal, drawn on the CPU in the order of the parameters' names.
    A tensor that training left alone stays the base's.

    Args:
        model: The fine-tuned model, changed in place.
        base: The base model.
        seed: Of the noise.

    Raises:
        ModelError: The models do not have the same tensors.
    """
    theirs = dict(base.named_parameters())
    rng = torch.Generator().manual_seed(seed)
    for name, weight in sorted(model.named_parameters()):
        if name not in theirs or theirs[name].shape != weight.shape:
            raise ModelError(
                f"noise cannot be matched to a change of {name}: the base model has no such tensor",
                value=tuple(weight.shape),
                valid="two models of one architecture and size",
            )
        before = theirs[name].float().cpu()
        size = (weight.float().cpu() - before).norm()
        drawn = torch.randn(weight.shape, generator=rng)
        weight.copy_(before + drawn * (size / drawn.norm()))


def _apart(placement: Literal["auto", "together", "sequential"], need_bytes: int, device: torch.device) -> bool:
    if device.type == "cpu" or placement == "together":
        return False
    return placement == "sequential" or need_bytes > torch.cuda.mem_get_info(device)[0]


def _move_all_but_blocks(models: PairModels) -> None:
    for loaded in (models.base, models.sft):
        parts: Mapping[str, torch.nn.Module] = dict(loaded.anatomy.trunk.named_children())
        for part in parts.values():
            if part is not loaded.anatomy.blocks:
                part.to(models.device)
        loaded.anatomy.head.to(models.device)


def _loaded(model: Any, tokenizer: Any) -> Loaded:
    return Loaded(anatomy(model), tokenizer)
