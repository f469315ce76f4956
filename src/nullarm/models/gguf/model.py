"""Making a transformers model of a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from nullarm.errors import ModelError
from nullarm.models.gguf.configuration import configuration
from nullarm.models.gguf.header import read_header
from nullarm.models.gguf.weights import state_dict


def read_model(auto: Any, path: Path, *, dtype: torch.dtype, num_labels: int | None = None, **arguments: Any) -> Any:
    """A model with a file's weights, dequantised.

    Args:
        auto: One of transformers' auto classes; a head that the file does not have is drawn at random.
        path: The GGUF file.
        dtype: Of all weights.
        num_labels: Of the head of a sequence classifier.
        arguments: Further ones of `from_pretrained`.

    Raises:
        ModelError: The file is damaged or of an unknown architecture, or has not all weights.
    """
    from transformers import AutoConfig

    header = read_header(path)
    settings = configuration(header)
    config = AutoConfig.for_model(**settings)
    if num_labels is not None:
        config.num_labels = num_labels
    with torch.device("meta"):
        kind = type(auto.from_config(config))
    model, found = kind.from_pretrained(
        None,
        config=config,
        state_dict=state_dict(header, settings, dtype),
        dtype=dtype,
        output_loading_info=True,
        **arguments,
    )
    _refuse_incomplete(found["missing_keys"], path)
    return model


def _refuse_incomplete(missing: set[str], path: Path) -> None:
    """A new head is meant; any other weight that is missing has been drawn at random."""
    if lost := sorted(name for name in missing if name.startswith("model.")):
        raise ModelError(f"the GGUF file lacks {len(lost)} weights", value=str(path), valid=f"among them {lost[0]}")
