"""From a configuration file with a block `residual_compare:` to a nullarm study. What is not carried over is named."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nullarm.errors import ModelError, StudyError
from nullarm.models.reference import parse
from nullarm.protocols.residual.runbook.block import BLOCK, CONTROL, CompareBlock, SweepEntry, read_block
from nullarm.protocols.translation import Translation, name_from
from nullarm.sites.provenance import gpus
from nullarm.study.load import dev_mode
from nullarm.study.spec import FORMAT
from nullarm.study.strict_yaml import parse_file

MARGIN = 0.01
"""Smallest Jensen–Shannon divergence that matters, nats."""
DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
OF_HUB_MODELS = "bfloat16"
"""What `auto` means for a model on the hub: the dtype of the checkpoints of the source's sweep."""
OUTSIDE = f"outside of {BLOCK}: the trainer reads it (experiments/template_experiment.py)"
NOT_CARRIED = {
    "local_run.enabled": "every engine may run every pair: nullarm run --engine",
    "local_run.min_vram_gb": "computed from each model's configuration: nullarm plan says which pair fits which GPU",
    "local_run.require_gpu_name_substring": "nullarm preflight compares the machine with what the plan needs",
    "local_run.cuda_device_index": "nullarm run --device cuda:N takes that GPU",
    "local_run.allowed_pairs": "nullarm run --entries NAME,NAME runs these pairs",
    "model_sweep.estimated_vram_gb": "computed from the model's configuration: nullarm plan",
}
"""Keys of the block that a study has no use for, and why."""


def is_compare_config(data: object) -> bool:
    """Whether parsed YAML is a configuration file of the source's comparison rather than a study."""
    return isinstance(data, dict) and "protocol" not in data and BLOCK in data


def translate(path: Path, environment: Mapping[str, str] | None = None) -> Translation:
    """Translate a configuration file.

    Every pair is an arm; the control is the first one's base model beside itself. Production reads the block's
    `prompt_file`, if there is one, and trims its prompts to the shortest; development (`DEV_MODE`, profile `quick`)
    reads its `prompts` and trims nothing.

    Args:
        path: The file.
        environment: Where the `RESIDUAL_*` variables and `DEV_MODE` are looked up; the process environment when left
            out.

    Raises:
        StudyError: The file cannot be read, or a key of the block, or a variable, is wrong.
        ModelError: A model reference is wrong.
    """
    document = parse_file(path)
    if not is_compare_config(document.data):
        raise StudyError(f"{path} has no block {BLOCK}", valid=f"a mapping with {BLOCK}")
    environment = os.environ if environment is None else environment
    block = read_block(document, str(path), environment)
    entries = _entries(block)
    single = "" if block.model_sweep else f"-{entries[0].name}"
    study: dict[str, Any] = {
        "format": FORMAT,
        "name": name_from(path.stem + single, BLOCK),
        "question": "Where, in depth and position, does fine-tuning change the residual stream?",
        "protocol": "residual",
        "seeds": [0],
        "factors": {"pair": {CONTROL: {"role": "control", "null": "a model does not differ from itself"}}},
        "parameters": _parameters(block, entries, path),
        "analysis": _analysis(entries),
        "resources": _resources(block.device),
        "profiles": {"quick": _quick(block)},
    }
    study["factors"]["pair"] |= {entry.name: {} for entry in entries}
    return Translation(study, _not_carried(document.data, block, entries, development=dev_mode(environment)))


def _entries(block: CompareBlock) -> tuple[SweepEntry, ...]:
    """The sweep, or the one pair under the short name of its fine-tuned model."""
    if block.model_sweep:
        return block.model_sweep
    pair = block.model_dump(include={"base_model", "sft_model", "tokenizer"})
    short = re.split(r"[/:]", pair["sft_model"].rstrip("/"))[-1].partition("@")[0]
    return (SweepEntry(name=name_from(short, "pair"), **pair),)


def _parameters(block: CompareBlock, entries: tuple[SweepEntry, ...], path: Path) -> dict[str, Any]:
    first = entries[0]
    dtype = _dtype(first.dtype or block.dtype, first.base_model)
    pairs = {CONTROL: {"base": first.base_model, "sft": first.base_model, "tokenizer": first.tokenizer}}
    pairs |= {entry.name: _pair(entry, block, dtype) for entry in entries}
    tracked = {
        "ids": list(block.tracked_token_ids),
        "strings": list(block.tracked_token_strings),
        "named": block.interesting_token_map,
    }
    swaps = () if block.multi_pass.enabled else block.embedding_variants
    parameters = {
        "pairs": {name: _filled(pair) for name, pair in pairs.items()},
        **_prompts(block, path),
        "prompt_variants": list(block.prompt_variants),
        "prompt_variant_options": block.prompt_variant_options,
        "tracked": _filled(tracked),
        "top_k": block.top_k,
        "dtype": dtype,
        "embedding_variants": [swap.model_dump(mode="json") for swap in swaps],
        "multi_pass": block.multi_pass.model_dump(mode="json", exclude_unset=True),
        "model_kwargs": block.model_kwargs,
        "tokenizer_kwargs": block.tokenizer_kwargs,
    }
    return _filled(parameters)


def _pair(entry: SweepEntry, block: CompareBlock, study_dtype: str) -> dict[str, Any]:
    dtype = _dtype(entry.dtype or block.dtype, entry.base_model)
    return {
        "base": entry.base_model,
        "sft": entry.sft_model,
        "tokenizer": entry.tokenizer,
        "dtype": None if dtype == study_dtype else dtype,
        "notes": entry.notes,
    }


def _filled(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Without what says nothing."""
    return {key: value for key, value in mapping.items() if value not in (None, "", [], {})}


def _dtype(name: str, ref: str) -> str:
    """The dtype in torch's words; `auto` is what the checkpoint says of itself."""
    if name != "auto":
        return DTYPES.get(name, name)
    model = parse(ref)
    if model.kind != "directory":
        return OF_HUB_MODELS if model.on_hub else "float32"
    try:
        config = json.loads((Path(model.name) / "config.json").read_text("utf-8"))
        return str(config.get("dtype") or config.get("torch_dtype") or "float32")
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"config.json cannot be read: {error}", value=model.name) from error


def _prompts(block: CompareBlock, path: Path) -> dict[str, Any]:
    if block.prompt_file is None:
        return {"prompts": list(block.prompts)}
    return {"prompt_file": _found(block.prompt_file, path), "normalize_length": True}


def _found(name: str, path: Path) -> str:
    """The prompt file, from the working directory or else from where the configuration is."""
    for place in (Path(name), path.parent / name):
        if place.expanduser().is_file():
            return str(place)
    raise StudyError(
        f"{path}: {BLOCK}.prompt_file: there is no such file",
        value=name,
        valid=f"a path from the working directory {Path.cwd()} or from {path.parent.absolute()}",
    )


def _quick(block: CompareBlock) -> dict[str, Any]:
    """Development: a rehearsal on the inline prompts where there are any, none of them trimmed."""
    inline = {"prompts": list(block.prompts), "prompt_file": None} if block.prompts and block.prompt_file else {}
    return {"smoke": True, "parameters": {**inline, "normalize_length": False}}


def _analysis(entries: tuple[SweepEntry, ...]) -> dict[str, Any]:
    """One contrast per pair, so that a pair that fails costs its own only."""
    contrasts: list[dict[str, Any]] = [
        {"name": entry.name, "treatment": entry.name, "control": CONTROL, "test": "paired_items"} for entry in entries
    ]
    contrasts[0]["primary"] = True
    return {"metric": "js", "margin": MARGIN, "incomplete": "drop_seed", "contrasts": contrasts}


def _resources(device: str) -> dict[str, Any]:
    """One GPU for `cuda`, estimated for the source's kind; `auto` is what this machine has."""
    if device == "auto":
        return {"gpus": 1 if gpus() else 0}
    return {"gpus": 1, "device": "h200"} if device.startswith("cuda") else {"gpus": 0}


def _not_carried(
    data: Mapping[str, Any], block: CompareBlock, entries: tuple[SweepEntry, ...], *, development: bool
) -> dict[str, str]:
    inside = {f"local_run.{key}": NOT_CARRIED[f"local_run.{key}"] for key in sorted(block.local_run.model_fields_set)}
    if any(entry.estimated_vram_gb is not None for entry in block.model_sweep):
        inside["model_sweep.estimated_vram_gb"] = NOT_CARRIED["model_sweep.estimated_vram_gb"]
    if block.model_sweep:
        inside |= {
            key: "model_sweep names the pairs"
            for key in ("base_model", "sft_model", "tokenizer")
            if getattr(block, key) is not None
        }
    elif data[BLOCK].get("model_sweep"):
        inside["model_sweep"] = "RESIDUAL_BASE_MODEL and RESIDUAL_SFT_MODEL name one pair"
    if block.multi_pass.enabled and block.embedding_variants:
        inside["embedding_variants"] = "multi_pass names the runs: add what they exchange to multi_pass.runs"
    if block.prompts and block.prompt_file and development:
        inside["prompt_file"] = "read in production only (without DEV_MODE); prompts otherwise"
    elif block.prompts and block.prompt_file:
        inside["prompts"] = "read in development only (DEV_MODE, profile quick); prompt_file otherwise"
    if "auto" in [entry.dtype or block.dtype for entry in entries]:
        inside["dtype"] = (
            f"auto is {OF_HUB_MODELS} for hub models, a directory's own dtype, float32 for built-in models"
        )
    if ":" in block.device:
        inside["device"] = f"one GPU, whichever is free; nullarm run --device {block.device} takes that one"
    outside = {", ".join(rest): OUTSIDE} if (rest := [key for key in data if key != BLOCK]) else {}
    return {f"{BLOCK}.{key}": why for key, why in inside.items()} | outside
