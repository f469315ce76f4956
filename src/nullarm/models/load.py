"""Loading a model by reference, always through `from_pretrained(directory)`, built-in models included."""

from __future__ import annotations

from typing import Any

from nullarm.errors import ModelError
from nullarm.models.instantiate import instantiate, tokenizer_for, written
from nullarm.models.quiet import without_progress_bars
from nullarm.models.reference import Reference, parse
from nullarm.models.shapes import SHAPES
from nullarm.models.tiny.build import directory_of

DTYPES = ("float32", "bfloat16", "float16", "float64")


def load_causal_lm(ref: str, *, dtype: str = "float32", device: str = "cpu") -> tuple[Any, Any]:
    """A causal LM in evaluation mode, with its tokeniser.

    A tokeniser without a padding token pads with its end of text.

    Args:
        ref: Model reference (see `nullarm.models.reference`).
        dtype: Name of a torch dtype. fp32 by default: training in bf16 on a CPU is over three times slower.
        device: Name of a torch device.

    Raises:
        ModelError: The model is missing or unreadable, or dtype or device are not to be had.
    """
    from transformers import AutoModelForCausalLM

    return _load(AutoModelForCausalLM, ref, dtype, device, {})


def load_sequence_classifier(
    ref: str, num_labels: int, *, seed: int = 0, dtype: str = "float32", device: str = "cpu"
) -> tuple[Any, Any]:
    """A sequence classifier in evaluation mode, with its tokeniser.

    Args:
        ref: Model reference.
        num_labels: Classes; 1 for regression.
        seed: Of the head, which is new unless the model has one of this size.
        dtype: Name of a torch dtype.
        device: Name of a torch device.

    Raises:
        ModelError: As for `load_causal_lm`.
    """
    import torch
    from transformers import AutoModelForSequenceClassification

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, tokenizer = _load(AutoModelForSequenceClassification, ref, dtype, device, {"num_labels": num_labels})
    model.config.pad_token_id = tokenizer.pad_token_id
    return model, tokenizer


def _load(auto: Any, ref: str, dtype: str, device: str, options: dict[str, Any]) -> tuple[Any, Any]:
    import torch
    from safetensors import SafetensorError
    from transformers import AutoTokenizer

    _check_placement(dtype, device)
    reference = parse(ref)
    if reference.kind == "random" and not SHAPES[reference.name].tiny:
        # Gigabytes of noise are not worth a trip over the disk.
        model = instantiate(reference.name, seed=reference.seed, dtype=dtype, device=device, **options)
        return model, tokenizer_for(SHAPES[reference.name])
    where, revision = _source(reference)
    try:
        with without_progress_bars():
            tokenizer = AutoTokenizer.from_pretrained(where, **revision)
            model = auto.from_pretrained(
                where, dtype=getattr(torch, dtype), use_safetensors=True, **revision, **options
            )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise _unloadable(reference, ref, error) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model.to(device).eval(), tokenizer


def _source(reference: Reference) -> tuple[str, dict[str, str]]:
    if reference.kind == "builtin":
        return str(directory_of(reference.name)), {}
    if reference.kind == "random":
        return str(written(reference)), {}
    return reference.name, {"revision": reference.revision} if reference.kind == "hub" else {}


def _check_placement(dtype: str, device: str) -> None:
    import torch

    if dtype not in DTYPES:
        raise ModelError("unknown dtype", value=dtype, valid=DTYPES)
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ModelError("there is no CUDA device here", value=device, valid="cpu", next_command="nullarm doctor")


def _unloadable(reference: Reference, ref: str, error: Exception) -> ModelError:
    reason = " ".join(str(error).split())[:300]
    if reference.kind == "hub":
        return ModelError(
            f"the hub model is neither cached nor reachable, and there is no directory of this name: {reason}",
            value=ref,
            next_command=f"hf download {reference.name} --revision {reference.revision}",
        )
    return ModelError(
        f"the model cannot be loaded: {reason}", value=ref, valid="config.json, *.safetensors and a tokeniser"
    )
