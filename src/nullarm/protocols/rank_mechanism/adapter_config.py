"""The part of PEFT's `adapter_config.json` that says what ΔW is: rank, scale and kind of every module."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from nullarm.errors import AdapterError

CONFIG_FILE = "adapter_config.json"

T = TypeVar("T")


@dataclass(frozen=True)
class LoraSettings:
    """What an adapter's configuration says about its updates.

    Attributes:
        r: Rank of modules that no `rank_pattern` names.
        alpha: `lora_alpha` of modules that no `alpha_pattern` names.
        rslora: Scale is alpha / √r instead of alpha / r (Kalajdzievski 2023).
        dora: Weight-decomposed (Liu et al. 2024): BA is the update of the direction, before normalisation.
        fan_in_fan_out: Base weights are stored (in, out), as in GPT-2's Conv1D.
        rank_pattern: Exceptions to `r`, by PEFT's patterns.
        alpha_pattern: Exceptions to `alpha`, by PEFT's patterns.
        parameter_parents: Modules of which bare parameters are targeted (`target_parameters`), without their leaf.
    """

    r: int
    alpha: float
    rslora: bool = False
    dora: bool = False
    fan_in_fan_out: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    parameter_parents: tuple[str, ...] = ()

    def rank_of(self, module: str) -> int:
        """Rank the configuration gives to `module` (its name in the base model)."""
        return pattern_value(self.rank_pattern, module, self.r)

    def alpha_of(self, module: str) -> float:
        """lora_alpha the configuration gives to `module`."""
        return pattern_value(self.alpha_pattern, module, self.alpha)

    def scale_of(self, module: str) -> float:
        """Factor in front of BA."""
        rank = self.rank_of(module)
        return self.alpha_of(module) / (math.sqrt(rank) if self.rslora else rank)

    def targets_parameters_of(self, module: str) -> bool:
        """Whether `module` holds parameters that are adapted themselves (mixture-of-experts tensors)."""
        # the second targeted parameter of a module is wrapped around the first: `experts.base_layer`
        plain = module.removesuffix(".base_layer")
        return any(plain == parent or plain.endswith(f".{parent}") for parent in self.parameter_parents)


def pattern_value(patterns: Mapping[str, T], module: str, default: T) -> T:
    """Value of the first pattern that matches `module`, by the rule of `peft.utils.other.get_pattern_key`.

    A pattern is a regular expression for a whole dotted tail of the name: `q_proj` and `layers.0.self_attn.q_proj`
    match `model.layers.0.self_attn.q_proj`, `proj` does not.

    Raises:
        AdapterError: If a pattern is not a regular expression.
    """
    for pattern, value in patterns.items():
        try:
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
        except re.error as cause:
            raise AdapterError(
                f"{CONFIG_FILE}: a key of rank_pattern or alpha_pattern is not a regular expression ({cause})",
                value=pattern,
                valid="module names or regular expressions for the tail of one",
                next_command=f"correct the key in {CONFIG_FILE}",
            ) from cause
    return default


def read_settings(directory: Path) -> LoraSettings:
    """Read `adapter_config.json`.

    Raises:
        AdapterError: If the file is missing, is not JSON, describes no LoRA adapter, or holds an impossible value.
    """
    config = _read_json(directory)
    kind = config.get("peft_type")
    if kind != "LORA":
        raise AdapterError(
            f"{directory / CONFIG_FILE}: peft_type is not one that can be audited",
            value=kind,
            valid="LORA (plain, rsLoRA, DoRA)",
            next_command="nullarm audit DIR with the directory of a LoRA adapter",
        )
    for unsupported in ("use_qalora", "use_bdlora", "kasa_config"):
        if config.get(unsupported):
            raise AdapterError(
                f"{directory / CONFIG_FILE}: the update of this variant is not scale · BA",
                value=f"{unsupported}={config[unsupported]!r}",
                valid="LORA (plain, rsLoRA, DoRA)",
                next_command="nullarm audit DIR with the directory of such an adapter",
            )
    return LoraSettings(
        r=_rank(directory, "r", config.get("r")),
        alpha=_number(directory, "lora_alpha", config.get("lora_alpha")),
        rslora=bool(config.get("use_rslora")),
        dora=bool(config.get("use_dora")),
        fan_in_fan_out=bool(config.get("fan_in_fan_out")),
        rank_pattern={
            k: _rank(directory, f"rank_pattern[{k}]", v) for k, v in _table(directory, config, "rank_pattern")
        },
        alpha_pattern={
            k: _number(directory, f"alpha_pattern[{k}]", v) for k, v in _table(directory, config, "alpha_pattern")
        },
        parameter_parents=_parameter_parents(directory, config),
    )


def _read_json(directory: Path) -> dict[str, object]:
    path = directory / CONFIG_FILE
    if not path.is_file():
        nested = sorted(str(found.parent) for found in directory.glob(f"*/{CONFIG_FILE}"))
        raise AdapterError(
            f"adapter directory {directory} has no {CONFIG_FILE}",
            valid=nested or f"a directory with {CONFIG_FILE} and adapter_model.safetensors",
            next_command=f"nullarm audit {nested[-1] if nested else 'DIR'}",
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as cause:
        raise _bad(directory, "the file", f"{cause}", "one JSON object") from cause
    if not isinstance(config, dict):
        raise _bad(directory, "the file", type(config).__name__, "one JSON object")
    return config


def _table(directory: Path, config: Mapping[str, object], key: str) -> list[tuple[str, object]]:
    table = config.get(key) or {}
    if not isinstance(table, dict):
        raise _bad(directory, key, table, "an object of pattern: number")
    return list(table.items())


def _parameter_parents(directory: Path, config: Mapping[str, object]) -> tuple[str, ...]:
    names = config.get("target_parameters") or []
    if not isinstance(names, list):
        raise _bad(directory, "target_parameters", names, "a list of parameter names")
    return tuple(str(name).rpartition(".")[0] for name in names)


def _rank(directory: Path, key: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise _bad(directory, key, value, "an integer ≥ 1")
    return value


def _number(directory: Path, key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise _bad(directory, key, value, "a finite number")
    return float(value)


def _bad(directory: Path, key: str, value: object, valid: str) -> AdapterError:
    return AdapterError(
        f"{directory / CONFIG_FILE}: {key} is unusable",
        value="nothing" if value is None else value,
        valid=valid,
        next_command=f"correct {CONFIG_FILE}, or save the adapter again with save_pretrained",
    )
