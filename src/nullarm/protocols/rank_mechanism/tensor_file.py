"""Read single tensors from a safetensors file without keeping the file in memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from nullarm.errors import NullarmError


def safetensors_shapes(path: Path, error: type[NullarmError]) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of the file, from its header alone.

    Args:
        path: A `.safetensors` file.
        error: What to raise when the file is not readable as one (`AdapterError`, `ModelError`).
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}
    except (SafetensorError, OSError) as cause:
        raise error(
            f"{path} is not a readable safetensors file: {cause}",
            valid="a complete file as written by save_pretrained",
            next_command="copy or save the file again",
        ) from cause


def read_safetensors(path: Path, keys: Sequence[str]) -> list[Tensor]:
    """The named tensors, in order. The file is mapped for this call only, so pages read earlier do not pile up."""
    with safe_open(path, framework="pt") as file:
        return [file.get_tensor(key) for key in keys]
