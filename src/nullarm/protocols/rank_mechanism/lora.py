"""Adapters at exactly the ranks a map gives: one alpha rule, common random numbers, checked after building.

The `transformers` and `peft` classes take seconds to import, so they are imported inside the functions.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import safetensors.torch
import torch

from nullarm.errors import AdapterError, ModelError, StudyError, nearest
from nullarm.protocols.rank_mechanism.module_names import canonical_name
from nullarm.protocols.rank_mechanism.ranks import ModuleShape, RankMap
from nullarm.store.atomic import make_directory, write_bytes

if TYPE_CHECKING:
    from peft import PeftModel

AlphaRule = Literal["fixed", "alpha=r", "rslora"]
"""Scale of BA: `fixed` alpha / r, `alpha=r` 1, `rslora` alpha / √r (Kalajdzievski 2023)."""

TaskType = Literal["CAUSAL_LM", "SEQ_CLS"]

ADAPTER = "default"
"""PEFT's name for the one adapter of a model."""


def target_modules(model: torch.nn.Module, names: Sequence[str]) -> list[ModuleShape]:
    """The linear modules called `names` (`q_proj`, …), in the model's order, by their names in the base model.

    Raises:
        ModelError: A name occurs nowhere.
    """
    linear = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    leaves = Counter(name.rpartition(".")[2] for name in linear)
    for name in names:
        if name not in leaves:
            raise ModelError(f"the model has no linear module {name!r}{nearest(name, leaves)}", valid=sorted(leaves))
    return [
        ModuleShape(name, module.in_features, module.out_features)
        for name, module in linear.items()
        if name.rpartition(".")[2] in names
    ]


def build_lora(
    model: torch.nn.Module,
    *,
    ranks: Mapping[str, int],
    alpha_rule: AlphaRule,
    alpha: float,
    dropout: float,
    seed: int,
    init_seed_rank: int,
    task_type: TaskType,
) -> PeftModel:
    """Give each module of `model` a LoRA update of the rank the map says; rank 0 leaves it alone.

    A is uniform in ±1/√in (what PEFT's Kaiming initialisation comes to), drawn at `init_seed_rank` rows from a
    generator seeded by (seed, module name) and cut to r rows; B is zero. So two arms that differ in ranks start with
    the same rows, and global generators are not drawn from.

    Args:
        model: Changed in place.
        ranks: A rank for every target module.
        alpha_rule: See `AlphaRule`.
        alpha: Not used by `alpha=r`.
        dropout: Of the input of A, while training.
        seed: Of the initialisation.
        init_seed_rank: The largest rank of all arms.
        task_type: PEFT's.

    Raises:
        StudyError: A rank is no whole number from 0 to `init_seed_rank`, the map leaves out a module beside ones of
            the same name, or adapts none.
        ModelError: The map names a module that the model has not.
        AdapterError: PEFT built something else than was asked for.
    """
    _check_ranks(model, ranks, most=init_seed_rank)
    built = inject_lora(model, ranks=ranks, alpha_rule=alpha_rule, alpha=alpha, dropout=dropout, task_type=task_type)
    for name, layer in adapted_layers(built).items():
        set_rows(layer, first_rows(seed, name, init_seed_rank, layer.in_features)[: ranks[name]])
    return built


def inject_lora(
    model: torch.nn.Module,
    *,
    ranks: Mapping[str, int],
    alpha_rule: AlphaRule,
    alpha: float,
    dropout: float,
    task_type: TaskType,
) -> PeftModel:
    """Build and check LoRA layers at `ranks`; A is still PEFT's draw, B is zero.

    Raises:
        AdapterError: A module has not the rank or the scale it should have.
    """
    from peft import LoraConfig, get_peft_model

    adapted = {name: rank for name, rank in ranks.items() if rank > 0}
    heterogeneous = len(set(adapted.values())) > 1
    config = LoraConfig(
        r=max(adapted.values()),
        # Complete or empty: a module that a pattern leaves out would train at `r`.
        rank_pattern={exactly(name): rank for name, rank in adapted.items()} if heterogeneous else {},
        lora_alpha=_number(alpha_of(alpha_rule, alpha, max(adapted.values()))),
        alpha_pattern=(
            {exactly(name): rank for name, rank in adapted.items()} if heterogeneous and alpha_rule == "alpha=r" else {}
        ),
        use_rslora=alpha_rule == "rslora",
        lora_dropout=dropout,
        target_modules=list(adapted),
        task_type=_task_type(task_type),
    )
    with torch.random.fork_rng(devices=[]):
        built = get_peft_model(model, config)
    train_heads_in_fp32(built)
    _check_built(built, {name: (rank, scale_of(alpha_rule, alpha, rank)) for name, rank in adapted.items()})
    return built


def train_heads_in_fp32(model: PeftModel) -> None:
    """Make a classifier's head, which PEFT trains in the base model's type, fp32 like the adapters.

    Steps of a usual learning rate are lost in the eight bits of bf16.
    """
    from peft.utils import ModulesToSaveWrapper

    for wrapper in model.modules():
        if isinstance(wrapper, ModulesToSaveWrapper):
            head = wrapper.modules_to_save[ADAPTER]
            if any(parameter.dtype != torch.float32 for parameter in head.parameters()):
                head.float().register_forward_pre_hook(lambda _, inputs: tuple(part.float() for part in inputs))


def exactly(name: str) -> str:
    """Pattern that PEFT matches with the module `name` and with no other (by itself it matches dotted tails)."""
    return f"^{re.escape(name)}$"


def alpha_of(rule: AlphaRule, alpha: float, rank: int) -> float:
    """`lora_alpha` of a module of this rank.

    Raises:
        StudyError: The rule is unknown.
    """
    if rule not in get_args(AlphaRule):
        raise StudyError("lora.alpha_rule is unknown", value=rule, valid=get_args(AlphaRule))
    return rank if rule == "alpha=r" else alpha


def scale_of(rule: AlphaRule, alpha: float, rank: int) -> float:
    """Factor before BA of a module of this rank."""
    return alpha_of(rule, alpha, rank) / (math.sqrt(rank) if rule == "rslora" else rank)


def module_generator(seed: int, name: str) -> torch.Generator:
    """A generator for one module, whatever other modules there are and in which order they are built."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def first_rows(seed: int, name: str, rows: int, in_features: int) -> torch.Tensor:
    """A's initial rows [rows, in_features], fp32 on the CPU."""
    bound = 1 / math.sqrt(in_features)
    return torch.empty(rows, in_features).uniform_(-bound, bound, generator=module_generator(seed, name))


def set_rows(layer: Any, rows: torch.Tensor) -> None:
    """Put `rows` [r, in_features] into A of a LoRA layer."""
    with torch.no_grad():
        layer.lora_A[ADAPTER].weight.copy_(rows)


def adapted_layers(model: PeftModel) -> dict[str, Any]:
    """PEFT's layers by their names in the base model."""
    from peft.tuners.lora import LoraLayer

    return {canonical_name(name): module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def final_ranks(model: PeftModel, modules: Sequence[ModuleShape]) -> RankMap:
    """The rank each target module ended with: 0 where it has no update, AdaLoRA's pruned triplets not counted."""
    ranks = {name: int(layer.r[ADAPTER]) for name, layer in adapted_layers(model).items()}
    ranks |= {name: sum(kept) for name, kept in kept_triplets(model).items()}
    return {module.name: ranks.get(module.name, 0) for module in modules}


def kept_triplets(model: PeftModel) -> dict[str, list[bool]]:
    """Which of its initial ranks AdaLoRA keeps, by module; empty before its first pruning, and for LoRA."""
    masks = getattr(model.peft_config[ADAPTER], "rank_pattern", None) or {}
    return {name.partition(".lora_E")[0]: mask for name, mask in masks.items() if ".lora_E" in name}


def save_adapter(model: PeftModel, directory: Path, *, base_name: str = "base") -> None:
    """Write the adapter in PEFT's format; equal adapters give equal bytes on every machine.

    Args:
        model: With one LoRA adapter.
        directory: Created if absent; files in it are replaced.
        base_name: Written as `base_model_name_or_path`: a hub id or content id rather than a path of this machine.

    Raises:
        AdapterError: The adapter is of another kind.
        StorageError: The disk is full, read-only or gone.
    """
    from peft import get_peft_model_state_dict

    config = model.peft_config[ADAPTER].to_dict()
    if config["peft_type"] != "LORA":
        raise AdapterError(
            "only LoRA adapters are saved", value=str(config["peft_type"]), next_command="AdaLoraHook.as_lora() first"
        )
    tensors = get_peft_model_state_dict(model, save_embedding_layers=False)
    config |= {"inference_mode": True, "base_model_name_or_path": base_name}
    # Sets have another order in every process.
    config = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    make_directory(directory)
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_bytes(directory / "adapter_model.safetensors", safetensors.torch.save(plain, metadata={"format": "pt"}))
    write_bytes(directory / "adapter_config.json", json.dumps(config, indent=2, sort_keys=True).encode())


def _check_ranks(model: torch.nn.Module, ranks: Mapping[str, int], *, most: int) -> None:
    linear = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    for name, rank in ranks.items():
        if name not in linear:
            raise ModelError(f"the rank map names {name!r}, no linear module{nearest(name, linear)}")
        if not isinstance(rank, int) or not 0 <= rank <= most:
            raise StudyError(f"the rank of {name} is out of range", value=rank, valid=f"whole numbers from 0 to {most}")
    leaves = {name.rpartition(".")[2] for name in ranks}
    left_out = sorted(name for name in linear - ranks.keys() if name.rpartition(".")[2] in leaves)
    if left_out:
        raise StudyError(
            f"the rank map leaves out {left_out[0]} and {len(left_out) - 1} more",
            valid="every module of a targeted name; rank 0 leaves one unadapted",
        )
    if not any(ranks.values()):
        raise StudyError("the rank map adapts no module", value=dict(ranks), valid="at least one rank above 0")


def _check_built(model: PeftModel, wanted: Mapping[str, tuple[int, float]]) -> None:
    """Compare what PEFT built with ranks and scales that were asked for.

    Raises:
        AdapterError: They differ.
    """
    found = {
        name: (int(layer.lora_A[ADAPTER].weight.shape[0]), float(layer.scaling[ADAPTER]))
        for name, layer in adapted_layers(model).items()
    }
    for name in sorted(wanted.keys() | found.keys()):
        if found.get(name) != wanted.get(name):
            raise AdapterError(
                f"module {name} was built with another (rank, scale) than it was given",
                value=found.get(name),
                valid=str(wanted.get(name, "no update at all")),
            )


def _task_type(task_type: TaskType) -> TaskType:
    if task_type not in get_args(TaskType):
        raise StudyError("lora.task_type is unknown", value=task_type, valid=get_args(TaskType))
    return task_type


def _number(value: float) -> int | float:
    """Whole alphas as integers: that is how others write and read them."""
    return int(value) if value == int(value) else value
