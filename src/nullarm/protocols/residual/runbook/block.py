"""The block `residual_compare:` of the source's configuration files, as its runbook writes it, and its variables."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from nullarm.errors import StudyError, nearest
from nullarm.protocols.residual.parameters import MultiPass, Swap
from nullarm.study.spec import Name, Strict
from nullarm.study.strict_yaml import Document
from nullarm.study.validate import validated

BLOCK = "residual_compare"
CONTROL = "same_model"
"""Arm in which a model is compared with itself."""
PREFIX = "RESIDUAL_"
"""Of the names of environment variables that are read."""
VARIABLES = {
    "RESIDUAL_BASE_MODEL": "base_model",
    "RESIDUAL_SFT_MODEL": "sft_model",
    "RESIDUAL_TOKENIZER": "tokenizer",
    "RESIDUAL_DEVICE": "device",
    "RESIDUAL_DTYPE": "dtype",
    "RESIDUAL_PROMPT_FILE": "prompt_file",
    "RESIDUAL_TOKENIZER_KWARGS": "tokenizer_kwargs",
    "RESIDUAL_MODEL_KWARGS": "model_kwargs",
}
"""Environment variables, and the keys of the block that they replace. An empty one is as good as none."""

SourceDtype = Literal["auto", "fp32", "fp16", "bf16", "float32", "float16", "bfloat16"]


def _known_device(name: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise ValueError("must be auto, cpu, cuda or cuda:N")
    return name


class SweepEntry(Strict):
    """One pair of a sweep."""

    name: Name
    """Name of the pair."""
    base_model: str
    """Reference of the base model."""
    sft_model: str
    """Reference of the fine-tuned model."""
    tokenizer: str | None = None
    """Tokeniser of both sides; each model's own when left out."""
    dtype: SourceDtype | None = None
    """Of this pair's weights, instead of the block's."""
    estimated_vram_gb: float | None = None
    """What somebody expected."""
    notes: str = ""
    """For people."""


class LocalRun(Strict):
    """The source's conditions for running on the machine at hand."""

    enabled: bool | None = None
    """Whether to."""
    min_vram_gb: float | None = None
    """Least GPU memory."""
    require_gpu_name_substring: str | None = None
    """Part of the GPU's name."""
    cuda_device_index: int | None = None
    """Which GPU."""
    allowed_pairs: tuple[Any, ...] = ()
    """Which pairs."""


class CompareBlock(Strict):
    """The block. A key that is null is a key that is left out."""

    base_model: str | None = None
    """Reference of the base model."""
    sft_model: str | None = None
    """Reference of the fine-tuned model."""
    tokenizer: str | None = None
    """Tokeniser of both sides; each model's own when left out."""
    device: Annotated[str, AfterValidator(_known_device)] = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:N`."""
    dtype: SourceDtype = "auto"
    """Of the weights; `auto` is the checkpoint's own."""
    top_k: int = 25
    """Tokens kept of each list."""
    prompt_file: str | None = None
    """File with prompts."""
    prompts: tuple[str, ...] = ()
    """Prompts, inline."""
    prompt_variants: tuple[str, ...] = ()
    """Names of variants; `identity` when left out."""
    prompt_variant_options: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Options by variant."""
    tracked_token_ids: tuple[int, ...] = ()
    """Tokens whose logits are followed, by id."""
    tracked_token_strings: tuple[str, ...] = ()
    """The same by vocabulary string."""
    interesting_token_map: dict[str, str] = Field(default_factory=dict)
    """The same by a name of their own."""
    tokenizer_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the tokeniser's `from_pretrained`."""
    model_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the model's."""
    local_run: LocalRun = LocalRun()
    """Conditions for running on the machine at hand."""
    embedding_variants: tuple[Swap, ...] = ()
    """Comparisons with embeddings or unembeddings exchanged."""
    model_sweep: tuple[SweepEntry, ...] = ()
    """Several pairs, instead of the one of `base_model` and `sft_model`."""
    multi_pass: MultiPass = MultiPass()
    """The factorial of embedding and body."""

    @model_validator(mode="before")
    @classmethod
    def _null_is_left_out(cls, data: Any) -> Any:
        return {key: value for key, value in data.items() if value is not None} if isinstance(data, dict) else data

    @model_validator(mode="after")
    def _says_what_is_compared_on_what(self) -> CompareBlock:
        if not self.model_sweep and not (self.base_model and self.sft_model):
            raise ValueError("give `base_model` and `sft_model`, or `model_sweep`")
        if not self.prompts and self.prompt_file is None:
            raise ValueError("give `prompts` or `prompt_file`")
        names = [CONTROL, *(entry.name for entry in self.model_sweep)]
        if repeated := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"model_sweep: the name {repeated!r} is taken already; each pair needs one of its own")
        return self


def read_block(document: Document, source: str, environment: Mapping[str, str]) -> CompareBlock:
    """The block of a file with the environment's variables laid over it.

    Variables that name a model stand for one pair, and a sweep in the file gives way; one that names a tokeniser or a
    dtype holds for every pair of a sweep.

    Args:
        document: The file.
        source: Its name, for messages.
        environment: Where the variables are looked up.

    Raises:
        StudyError: A key is unknown or missing, or a value wrong; it is named with its line or its variable.
    """
    given = _variables(environment)
    laid_over = {VARIABLES[name]: _value(name, value) for name, value in given.items()}
    block = document.data[BLOCK]
    if isinstance(block, dict):
        block = {**block, **laid_over}
        if {"base_model", "sft_model"} & laid_over.keys():
            block.pop("model_sweep", None)
        for_all = {key: laid_over[key] for key in ("tokenizer", "dtype") if key in laid_over}
        if isinstance(sweep := block.get("model_sweep"), list):
            block["model_sweep"] = [{**entry, **for_all} if isinstance(entry, dict) else entry for entry in sweep]
    places = {key: f"{source}:{line}" for key, line in document.lines.items()}
    places |= {f"{BLOCK}.{VARIABLES[name]}": f"environment variable {name}" for name in given}
    return validated(CompareBlock, block, source, places, (BLOCK,))


def _variables(environment: Mapping[str, str]) -> dict[str, str]:
    given = {name: value.strip() for name, value in environment.items() if name.startswith(PREFIX) and value.strip()}
    if unknown := next((name for name in given if name not in VARIABLES), None):
        raise StudyError(
            f"unknown environment variable {unknown}{nearest(unknown, VARIABLES)}",
            valid=VARIABLES, next_command=f"unset {unknown}",
        )  # fmt: skip
    return given


def _value(name: str, text: str) -> Any:
    if not name.endswith("_KWARGS"):
        return text
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise StudyError(f"environment variable {name}", value=text, valid='a JSON object, such as {"use_fast": true}')
    return value
