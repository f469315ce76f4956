"""Loading a model by reference, through `from_pretrained(directory)`, built-in models included, or from a GGUF file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nullarm.errors import ModelError
from nullarm.models.adapters import merge
from nullarm.models.instantiate import instantiate, tokenizer_for, written
from nullarm.models.quiet import without_progress_bars
from nullarm.models.reference import Reference, parse
from nullarm.models.shapes import SHAPES
from nullarm.models.tiny.build import directory_of

DTYPES = ("float32", "bfloat16", "float16", "float64")
DECIDED = ("dtype", "torch_dtype", "revision", "use_safetensors")
"""Arguments of `from_pretrained` that follow from the other ones here."""
TOKENIZER_CONFIG = "tokenizer_config.json"


def load_causal_lm(
    ref: str,
    *,
    base: str | None = None,
    tokenizer: str | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    model_kwargs: Mapping[str, Any] = {},
    tokenizer_kwargs: Mapping[str, Any] = {},
) -> tuple[Any, Any]:
    """A causal LM in evaluation mode, with its tokeniser.

    Args:
        ref: Model reference (see `nullarm.models.reference`), or directory of a PEFT adapter, which is merged into
            `base`.
        base: Reference of the model that an adapter is put on; a whole model needs none.
        tokenizer: Reference of the model whose tokeniser is taken; its own when left out.
        dtype: Name of a torch dtype. fp32 by default: training in bf16 on a CPU is over three times slower.
        device: Name of a torch device; a `device_map` among `model_kwargs` goes before it.
        model_kwargs: Further arguments of the model's `from_pretrained`.
        tokenizer_kwargs: Further arguments of the tokeniser's `from_pretrained`.

    Raises:
        ModelError: The model is missing or unreadable, or dtype or device are not to be had.
        AdapterError: The adapter does not fit its base.
        torch.OutOfMemoryError: The device is full.
    """
    from transformers import AutoModelForCausalLM

    _check_placement(dtype, device)
    reference = parse(ref, adapter=base is not None)
    words = load_tokenizer(tokenizer or ref, tokenizer_kwargs, base=base)
    if base is not None and reference.kind == "adapter":
        model = _load(AutoModelForCausalLM, base, dtype, device, model_kwargs)
        return merge(model, Path(reference.name)).eval(), words
    return _load(AutoModelForCausalLM, ref, dtype, device, model_kwargs), words


def load_tokenizer(ref: str, tokenizer_kwargs: Mapping[str, Any] = {}, *, base: str | None = None) -> Any:
    """The tokeniser of a model; one without a padding token pads with its end of text.

    Args:
        ref: Model reference, or directory of a PEFT adapter.
        tokenizer_kwargs: Further arguments of `from_pretrained`.
        base: Reference of the adapter's base, whose tokeniser is taken when none lies beside the adapter.

    Raises:
        ModelError: The tokeniser is missing or unreadable.
    """
    reference = parse(ref, adapter=base is not None)
    if base is not None and reference.kind == "adapter" and not (Path(reference.name) / TOKENIZER_CONFIG).is_file():
        return load_tokenizer(base, tokenizer_kwargs)
    if _only_in_memory(reference):
        _refuse_arguments(ref, tokenizer_kwargs)
        return tokenizer_for(SHAPES[reference.name])
    with _explained(reference, ref):
        tokenizer = _read_tokenizer(reference, tokenizer_kwargs)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


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
        _check_placement(dtype, device)
        tokenizer = load_tokenizer(ref)
        model = _load(AutoModelForSequenceClassification, ref, dtype, device, {}, num_labels=num_labels)
    model.config.pad_token_id = tokenizer.pad_token_id
    return model, tokenizer


def _load(auto: Any, ref: str, dtype: str, device: str, model_kwargs: Mapping[str, Any], **head: int) -> Any:
    import torch

    reference = parse(ref)
    if _only_in_memory(reference):
        _refuse_arguments(ref, model_kwargs)
        return instantiate(reference.name, seed=reference.seed, dtype=dtype, device=device, **head)
    if decided := sorted(set(DECIDED) & set(model_kwargs)):
        raise ModelError("model_kwargs sets what is set elsewhere", value=decided, valid="other arguments")
    with _explained(reference, ref):
        model = _read_model(auto, reference, dtype=getattr(torch, dtype), **model_kwargs, **head)
    if getattr(model, "_hf_peft_config_loaded", False):
        raise _hidden_adapter(reference, ref)
    if model_kwargs.get("device_map") is None:
        model = model.to(device)
    return model.eval()


def _read_tokenizer(reference: Reference, arguments: Mapping[str, Any]) -> Any:
    if reference.kind == "gguf":
        from nullarm.models.gguf.tokenizer import read_tokenizer

        return read_tokenizer(_fetched(reference), **arguments)
    from transformers import AutoTokenizer

    where, revision = _source(reference)
    return AutoTokenizer.from_pretrained(where, **revision, **arguments)


def _read_model(auto: Any, reference: Reference, **arguments: Any) -> Any:
    if reference.kind == "gguf":
        from nullarm.models.gguf.model import read_model

        return read_model(auto, _fetched(reference), **arguments)
    where, revision = _source(reference)
    return auto.from_pretrained(where, use_safetensors=True, **revision, **arguments)


def _only_in_memory(reference: Reference) -> bool:
    """Gigabytes of noise are not worth a trip over the disk."""
    return reference.kind == "random" and not SHAPES[reference.name].tiny


def _refuse_arguments(ref: str, arguments: Mapping[str, Any]) -> None:
    if given := [name for name, value in arguments.items() if value is not None]:
        raise ModelError(f"{ref} is not read from files, and takes no arguments for that", value=given, valid="none")


@contextmanager
def _explained(reference: Reference, ref: str) -> Iterator[None]:
    """What goes wrong in `from_pretrained`, as a ModelError; a full device is the caller's to deal with."""
    import torch
    from safetensors import SafetensorError

    try:
        with without_progress_bars():
            yield
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, LookupError, RuntimeError, SafetensorError) as error:
        raise _unloadable(reference, ref, error) from error


def _source(reference: Reference) -> tuple[str, dict[str, str]]:
    if reference.kind == "builtin":
        return str(directory_of(reference.name)), {}
    if reference.kind == "random":
        return str(written(reference)), {}
    return reference.name, {"revision": reference.revision} if reference.kind == "hub" else {}


def _fetched(reference: Reference) -> Path:
    """A GGUF file, downloaded if it is on the hub and not here yet."""
    if not reference.on_hub:
        return Path(reference.name)
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(reference.name, reference.file, revision=reference.revision))


def _check_placement(dtype: str, device: str) -> None:
    import torch

    if dtype not in DTYPES:
        raise ModelError("unknown dtype", value=dtype, valid=DTYPES)
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ModelError("there is no CUDA device here", value=device, valid="cpu", next_command="nvidia-smi")


def _unloadable(reference: Reference, ref: str, error: Exception) -> ModelError:
    reason = " ".join(str(error).split())[:300]
    if reference.on_hub:
        what, file = ("file", f" {reference.file}") if reference.file else ("directory", "")
        return ModelError(
            f"the hub model is neither cached nor reachable, and there is no {what} of this name: {reason}",
            value=ref,
            next_command=f"hf download {reference.name}{file} --revision {reference.revision}",
        )
    parts = "a GGUF file with all weights" if reference.kind == "gguf" else "config.json, *.safetensors and a tokeniser"
    return ModelError(f"the model cannot be loaded: {reason}", value=ref, valid=parts)


def _hidden_adapter(reference: Reference, ref: str) -> ModelError:
    """Transformers would put it on the base that its own configuration names, unmerged."""
    download = f"hf download {reference.name} --revision {reference.revision} --local-dir adapter"
    return ModelError(
        "there is a PEFT adapter in this place, and it is not said what base it goes on",
        value=ref,
        valid="a directory with adapter_config.json and no config.json, beside its base",
        next_command=download if reference.kind == "hub" else f"ls {reference.name}",
    )
