"""Fusers on disk, in the layout of the published C2C checkpoints.

A directory holds, for projector i, `projector_{i}.json` with its class and constructor arguments and its tensors in
`projector_{i}.safetensors` (preferred) or `projector_{i}.pt`; and `projector_config.json`, which says which projector
takes which source layer to which target layer:

    {"0": {"<sharer>": {"<target layer>": [[<source layer>, <projector>], …]}}}

where 0 is the receiver. Tensors keep the dtype and every bit they have in the file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from nullarm.errors import AdapterError, ModelError
from nullarm.protocols.kv_communication.fuser.fuser import Entries, Fuser
from nullarm.protocols.kv_communication.fuser.projector import C2CProjector
from nullarm.store.atomic import make_directory, write_bytes

CONFIG_FILE = "projector_config.json"
RECEIVER = "0"

_DOWNLOAD = "hf download nics-efc/C2C_Fuser --include '<pair>_Fuser/final/*' --local-dir DIR"
_SAVE_AGAIN = "copy the directory again, or save the fuser again with save_fuser"


def load_fuser(
    directory: Path | str,
    *,
    sharer: int = 1,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> Fuser:
    """Read a fuser, in evaluation mode. Draws no random number.

    Args:
        directory: Such as `Qwen3-0.6B_Qwen2.5-0.5B_Fuser/final`.
        sharer: Number of the sharer, from 1, where the directory knows several.
        device: Where its weights go.
        dtype: Of its weights and arithmetic; as stored when left out.

    Raises:
        AdapterError: A file is missing, damaged, or no projector's; tensors are missing, too many, or of another shape
            than their projector's arguments say; a layer or projector number is out of range.
    """
    directory = Path(directory)
    layers = _read_layers(directory, sharer)
    indices = sorted({index for entries in layers.values() for _, index in entries})
    projectors = [_read_projector(directory, index) for index in indices]
    places = {index: place for place, index in enumerate(indices)}
    compact = {t: tuple((source, places[index]) for source, index in entries) for t, entries in layers.items()}
    return Fuser(projectors, compact).to(device, dtype).eval()


def save_fuser(
    fuser: Fuser, directory: Path | str, *, sharer: int = 1, format: Literal["safetensors", "pt"] = "safetensors"
) -> None:
    """Write a fuser, its configuration last, so that a save that was cut short is no fuser yet and can be made again.

    Args:
        fuser: Saved as it is, whatever its mode.
        directory: Made where there is none.
        sharer: Number of the sharer, from 1.
        format: Of the tensors; published fusers are `pt`.

    Raises:
        AdapterError: The directory has a fuser already.
        StorageError: The disk is full, read-only or gone.
    """
    directory = Path(directory)
    if (directory / CONFIG_FILE).exists():
        raise AdapterError(
            f"{directory} has a fuser already", value=CONFIG_FILE, next_command="save to another directory"
        )
    make_directory(directory)
    for index, projector in enumerate(fuser.projectors):
        assert isinstance(projector, C2CProjector)
        tensors = {name: tensor.detach().cpu().clone() for name, tensor in projector.state_dict().items()}
        for suffix in ("safetensors", "pt"):
            _file(directory, index, suffix).unlink(missing_ok=True)  # of a save that was cut short
        write_bytes(_file(directory, index, format), _encode(tensors, format), sync_name=False)
        settings = {"class": C2CProjector.__name__, "init_args": projector.init_args}
        write_bytes(_file(directory, index, "json"), _json(settings), sync_name=False)
    layers = {str(target): [list(entry) for entry in entries] for target, entries in fuser.layers.items()}
    write_bytes(directory / CONFIG_FILE, _json({RECEIVER: {str(sharer): layers}}))


def _read_layers(directory: Path, sharer: int) -> dict[int, Entries]:
    if not directory.is_dir():
        raise AdapterError(f"fuser directory {directory} does not exist", next_command=_DOWNLOAD)
    path = directory / CONFIG_FILE
    if not path.is_file():
        raise AdapterError(
            f"fuser directory {directory} has no {CONFIG_FILE}",
            valid=sorted(str(found.parent) for found in directory.glob(f"*/{CONFIG_FILE}")),
            next_command=_DOWNLOAD,
        )
    by_sharer = _table(path, "the receiver's entry", _table(path, "the file", _read_json(path)).get(RECEIVER))
    if str(sharer) not in by_sharer:
        raise AdapterError(f"{path} has no sharer {sharer}", valid=sorted(by_sharer) or "none is in it")
    by_target = _table(path, f"the entry of sharer {sharer}", by_sharer[str(sharer)])
    layers = {
        _number(path, "a target layer", target): _entries(path, target, by_target[target]) for target in by_target
    }
    if not layers:
        raise _bad(path, f"the entry of sharer {sharer}", by_target, "at least one target layer")
    return layers


def _entries(path: Path, target: str, found: Any) -> Entries:
    what = f"target layer {target}"
    pairs = found if isinstance(found, list) else []
    if not pairs or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise _bad(path, what, found, "a list of pairs [source layer, projector]")
    return tuple(
        (_number(path, f"{what}: source layer", source), _number(path, f"{what}: projector", index))
        for source, index in pairs
    )


def _number(path: Path, what: str, value: Any) -> int:
    """Published files have numbers as they are and as strings."""
    text = str(value)
    if isinstance(value, bool) or not (text.isascii() and text.isdigit() and len(text) < 10):
        raise _bad(path, what, value, "a whole number from 0")
    return int(text)


def _read_projector(directory: Path, index: int) -> C2CProjector:
    projector = _empty_projector(_find(directory, index, "json"))
    path = _find(directory, index, "safetensors", "pt")
    tensors = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    _check_tensors(path, tensors, projector.state_dict())
    projector.load_state_dict(tensors, assign=True)
    return projector


def _find(directory: Path, index: int, *suffixes: str) -> Path:
    """The first of the projector's files with such a suffix."""
    paths = [_file(directory, index, suffix) for suffix in suffixes]
    for path in paths:
        if path.is_file():
            return path
    raise AdapterError(
        f"{directory} lacks {' or '.join(path.name for path in paths)}, which {CONFIG_FILE} asks for",
        valid=sorted(path.name for suffix in suffixes for path in directory.glob(f"projector_[0-9]*.{suffix}"))
        or "no such file is there",
        next_command=_DOWNLOAD,
    )


def _empty_projector(path: Path) -> C2CProjector:
    """A projector without numbers, to be given those of a file."""
    settings = _table(path, "the file", _read_json(path))
    if settings.get("class") != C2CProjector.__name__:
        raise _bad(path, "class", settings.get("class"), C2CProjector.__name__)
    try:
        with torch.device("meta"):
            return C2CProjector(**_table(path, "init_args", settings.get("init_args")))
    except (TypeError, RuntimeError) as error:  # unknown or missing names, sizes beyond all bounds
        raise _bad(path, "init_args", f"{error}", "the arguments of C2CProjector") from error
    except ModelError as error:
        raise AdapterError(f"{path}: {error.problem}", value=error.value, valid=error.valid) from error


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load_file(path)
        return tensors
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"{path} is not a readable safetensors file: {error}", next_command=_SAVE_AGAIN) from error


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or hostile file makes the restricted unpickler trip over
        raise AdapterError(
            f"{path} is not a readable state dict: {(str(error) or type(error).__name__).splitlines()[0]}",
            valid="tensors only, loadable with weights_only=True",
            next_command=_SAVE_AGAIN,
        ) from error
    if not isinstance(found, dict):
        raise _bad(path, "the file", type(found).__name__, "a dictionary of tensors")
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise _bad(path, repr(name), type(value).__name__, "tensors only")
    return found


def _check_tensors(path: Path, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    for problem, names in (("lacks", expected.keys() - found.keys()), ("has foreign", found.keys() - expected.keys())):
        if names:
            raise AdapterError(
                f"{path} {problem} tensors", value=", ".join(sorted(names)), valid=expected, next_command=_SAVE_AGAIN
            )
    for name, tensor in found.items():
        if tensor.shape != expected[name].shape or not tensor.is_floating_point() or tensor.layout != torch.strided:
            raise AdapterError(
                f"{path}: {name} does not agree with the arguments in {path.with_suffix('.json').name}",
                value=f"{tuple(tensor.shape)} {tensor.dtype}",
                valid=f"{tuple(expected[name].shape)}, floating point",
                next_command=_SAVE_AGAIN,
            )


def _file(directory: Path, index: int, suffix: str) -> Path:
    return directory / f"projector_{index}.{suffix}"


def _encode(tensors: dict[str, Tensor], format: Literal["safetensors", "pt"]) -> bytes:
    if format == "safetensors":
        encoded: bytes = safetensors.torch.save(tensors)
        return encoded
    buffer = BytesIO()
    torch.save(tensors, buffer)
    return buffer.getvalue()


def _json(data: object) -> bytes:
    return (json.dumps(data, indent=2) + "\n").encode()


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AdapterError(f"{path} cannot be read: {error}", valid="a JSON file", next_command=_DOWNLOAD) from error


def _table(path: Path, what: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _bad(path, what, value, "a JSON object")
    return value


def _bad(path: Path, what: str, value: object, valid: str) -> AdapterError:
    return AdapterError(
        f"{path}: {what} is unusable",
        value="nothing" if value is None else value,
        valid=valid,
        next_command=_SAVE_AGAIN,
    )
