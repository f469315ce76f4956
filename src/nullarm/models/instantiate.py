"""Making models with random weights, on any device, the meta device included."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nullarm.models.cache import cache_dir, writing_to
from nullarm.models.hashing import settings_hash
from nullarm.models.quiet import without_progress_bars
from nullarm.models.reference import Reference
from nullarm.models.shapes import SHAPES, Shape


def instantiate(
    name: str, *, seed: int = 0, dtype: str = "float32", device: str = "meta", num_labels: int | None = None
) -> Any:
    """A model of a written-out shape with random weights, drawn on `device` itself.

    Args:
        name: A key of `SHAPES`.
        seed: Of the weights; the same on one kind of device, not across kinds.
        dtype: Name of a torch dtype.
        device: `meta` for shapes without memory.
        num_labels: Classes of a sequence classifier instead of a causal LM.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    settings = dict(SHAPES[name].config)
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    auto = AutoModelForCausalLM
    if num_labels is not None:
        config.num_labels, config.pad_token_id = num_labels, config.pad_token_id or 0
        auto = AutoModelForSequenceClassification
    cuda = [torch.device(device)] if device.startswith("cuda") else []
    with torch.random.fork_rng(devices=cuda), torch.device(device):
        torch.manual_seed(seed)
        model = auto.from_config(config, dtype=getattr(torch, dtype)).eval()
    _rescale(model, SHAPES[name])
    return model


def _rescale(model: Any, shape: Shape) -> None:
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            for ending, factor in shape.scales.items():
                if name.endswith(f"{ending}.weight"):
                    parameter.mul_(factor)


def tokenizer_for(shape: Shape) -> Any:
    """The tokeniser that goes with a random model."""
    from nullarm.models.tiny.pretrain import world_tokenizer
    from nullarm.models.tiny.recipe import WORLD
    from nullarm.models.word_tokenizer import word_tokenizer

    if shape.tokenizer == "words":
        return word_tokenizer(shape.config["vocab_size"])
    return world_tokenizer(WORLD)


def written(reference: Reference) -> Path:
    """Directory of a tiny random model, written to the cache at first use.

    Raises:
        StorageError: The cache cannot be written.
    """
    shape = SHAPES[reference.name]
    key = settings_hash([asdict(shape), reference.seed])[:20]
    target = cache_dir() / "random" / f"{reference.name}-{key}"
    if target.is_dir():
        return target
    with writing_to(target.parent):
        _write(reference, target)
    return target


def _write(reference: Reference, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=target.parent, prefix=".tmp-"))
    try:
        with without_progress_bars():
            instantiate(reference.name, seed=reference.seed, device="cpu").save_pretrained(staging)
            tokenizer_for(SHAPES[reference.name]).save_pretrained(staging)
        os.rename(staging, target)
    except OSError:
        if not target.is_dir():  # otherwise another process was quicker, with the same bytes
            raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
