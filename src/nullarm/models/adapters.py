"""PEFT adapters as models: read, put on their base and merged into it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from nullarm.errors import AdapterError

WEIGHTS = "adapter_model.safetensors"


def merge(model: Any, directory: Path) -> Any:
    """Add an adapter's change to the weights of its base, which is changed in place, in its own dtype and device.

    Args:
        model: The base, of a transformers class.
        directory: Directory with `adapter_config.json` and `adapter_model.safetensors`.

    Returns:
        The base, without anything of PEFT around or inside it.

    Raises:
        AdapterError: Its weights are missing, incomplete or not those of its configuration on this base, or it adds
            virtual tokens instead of changing weights.
    """
    import torch
    from peft import PeftModel
    from safetensors import SafetensorError

    if not (directory / WEIGHTS).is_file():
        raise AdapterError(
            f"the adapter has no {WEIGHTS}", value=str(directory), valid=WEIGHTS, next_command=f"ls {directory}"
        )
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*Found missing adapter keys")  # they would stay at random
            adapted = PeftModel.from_pretrained(model, str(directory))
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, UserWarning, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise AdapterError(
            f"the adapter does not fit its configuration or its base {type(model).__name__}: {reason}",
            value=str(directory),
            valid="an adapter that was trained on this base",
        ) from error
    if adapted.active_peft_config.is_prompt_learning:
        raise AdapterError(
            "the adapter adds virtual tokens, and cannot be merged into weights",
            value=adapted.active_peft_config.peft_type.value,
            valid="LoRA and other adapters of weights",
        )
    return adapted.merge_and_unload()
