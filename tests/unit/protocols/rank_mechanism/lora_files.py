"""Adapter directories: written by hand, tensor by tensor, or by PEFT from a tiny model."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tiny_lora import tiny_qwen
from torch import Tensor

Q0 = "model.layers.0.self_attn.q_proj"
Q1 = "model.layers.1.self_attn.q_proj"
UP0 = "model.layers.0.mlp.up_proj"


def factors(r: int = 4, n_in: int = 12, n_out: int = 10, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random A `[r, n_in]` and B `[n_out, r]`."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(r, n_in, generator=generator), torch.randn(n_out, r, generator=generator)


def named_tensors(
    modules: dict[str, tuple[Tensor, Tensor]], key: str = "base_model.model.{name}.lora_{part}.weight"
) -> dict[str, Tensor]:
    return {
        key.format(name=name, part=part): tensor.contiguous()
        for name, pair in modules.items()
        for part, tensor in zip("AB", pair, strict=True)
    }


def write_adapter(directory: Path, tensors: dict[str, Tensor], **config: Any) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors, directory / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, **config}
    (directory / "adapter_config.json").write_text(json.dumps(settings))
    return directory


def two_modules(directory: Path, **config: Any) -> Path:
    """q_proj of two layers, rank 4, (in, out) = (12, 10)."""
    return write_adapter(directory, named_tensors({Q0: factors(seed=0), Q1: factors(seed=1)}), **config)


def peft_adapter(directory: Path, model: torch.nn.Module | None = None, **config: Any) -> dict[str, Tensor]:
    """Save a random adapter with PEFT's own code; the update of every module in float64, as PEFT scales it."""
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora import LoraLayer

    knobs = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"], "init_lora_weights": False}
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # about embeddings and DoRA, none of it about what is saved
        torch.manual_seed(7)
        adapted = get_peft_model(model or tiny_qwen(), LoraConfig(**{**knobs, **config}))
        adapted.save_pretrained(str(directory))
    prefix = "base_model.model."
    return {
        name.removeprefix(prefix): module.scaling["default"]
        * (module.lora_B["default"].weight.double() @ module.lora_A["default"].weight.double()).detach()
        for name, module in adapted.named_modules()
        if isinstance(module, LoraLayer) and isinstance(module.get_base_layer(), torch.nn.Linear)
    }
