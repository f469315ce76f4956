"""Compressed models on disk: the compressed matrices, and by reference the model they belong to.

A directory holds `factors.safetensors`, with tensors named `LAYER.SLOT+SLOT.basis` and `….SLOT` (a factored group), or
`….codes` and `….scales` (a rounded matrix), in the dtypes they were made in, and in its header the list `groups`; and,
written last, `compression.json`::

    format      1
    base        model: its reference; content_id: its nullarm.models.content_id
    groups      for people, what the header says: layer, slots, kind: factors (with rank) or rounded (with bits, …)
    tensors     bytes and sha256 of factors.safetensors
    provenance  what the writer says of the making
    sha256      of all of the above
"""

from __future__ import annotations

import json
import struct
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from nullarm.errors import FormatError, IntegrityError, ModelError, StorageError
from nullarm.models.load import load_causal_lm
from nullarm.models.reference import content_id
from nullarm.protocols.low_rank.factored.encoding import decode, encode
from nullarm.protocols.low_rank.factored.factors import Compressed
from nullarm.protocols.low_rank.factored.install import install
from nullarm.store.atomic import TEMP_PREFIX, make_directory, publish_file, storage_errors, write_bytes
from nullarm.store.files import encode_json, read_json, sha256_bytes, sha256_path, size_bytes

FORMAT = 1
CONFIG_FILE = "compression.json"
TENSOR_FILE = "factors.safetensors"

_SAVE_AGAIN = "copy the directory again, or save the compressed model again"


@dataclass(frozen=True, eq=False)
class Saved:
    """What a directory holds.

    Attributes:
        model_ref: Reference of the model that was compressed.
        model_content_id: What it was then.
        provenance: What the writer says of the making.
        compressed: The matrices, on the CPU: pages of the file, read when they are looked at.
    """

    model_ref: str
    model_content_id: str
    provenance: Mapping[str, Any]
    compressed: Compressed


def save(
    directory: Path | str,
    compressed: Compressed,
    *,
    model_ref: str,
    model_content_id: str,
    provenance: Mapping[str, Any],
) -> None:
    """Write compressed matrices, their description last: a save that was cut short can be made again.

    Matrices on the CPU are written from where they lie: at no time are there two copies of them.

    Args:
        directory: Made where there is none.
        compressed: The matrices, in whatever dtype and on whatever device.
        model_ref: Reference of the model they belong to.
        model_content_id: Its `nullarm.models.content_id`.
        provenance: JSON.

    Raises:
        ModelError: The directory has a compressed model already.
        StorageError: The disk is full, read-only or gone.
    """
    directory = Path(directory)
    if (directory / CONFIG_FILE).exists():
        raise ModelError(
            f"{directory} has a compressed model already", value=CONFIG_FILE, next_command="save to another directory"
        )
    tensors, groups = encode(compressed)
    described: dict[str, Any] = {
        "format": FORMAT,
        "base": {"model": model_ref, "content_id": model_content_id},
        "groups": groups,
        "provenance": dict(provenance),
    }
    encode_json(described)  # what is no JSON is refused before anything is written
    make_directory(directory)
    described["tensors"] = _write_tensors(directory / TENSOR_FILE, tensors, groups)
    write_bytes(directory / CONFIG_FILE, encode_json({**described, "sha256": _own_hash(described)}))


def read(directory: Path | str) -> Saved:
    """Read compressed matrices, checked against their hashes.

    Raises:
        ModelError: A file is missing.
        FormatError: A newer nullarm wrote it.
        IntegrityError: A file is cut short or altered.
    """
    directory = Path(directory)
    described = _read_config(_existing(directory / CONFIG_FILE))
    path = _existing(directory / TENSOR_FILE)
    _check(path, described["tensors"])
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    base = described["base"]
    return Saved(base["model"], base["content_id"], described["provenance"], decode(tensors, described["groups"]))


def read_for(directory: Path | str, ref: str, base_content_id: str) -> Compressed:
    """Read compressed matrices that are to be put into a model: into the one that they were made from, no other.

    Args:
        directory: Of `save`.
        ref: Reference of the model, for messages.
        base_content_id: Its `nullarm.models.content_id` as it was loaded.

    Raises:
        ModelError: A file is missing, or the model is another one than the matrices were made from.
        FormatError: A newer nullarm wrote it.
        IntegrityError: A file is cut short or altered.
    """
    saved = read(directory)
    if base_content_id != saved.model_content_id:
        raise ModelError(
            f"{ref} is another model than the one that {directory} was made from",
            value=base_content_id,
            valid=saved.model_content_id,
            next_command="compress the model as it is now, or bring back what it was",
        )
    return saved.compressed


def load_compressed(directory: Path | str, *, device: str = "cpu", dtype: str = "float32") -> tuple[Any, Any]:
    """A compressed model in evaluation mode, with its tokeniser: the base is loaded, and its layers replaced.

    Args:
        directory: Of `save`.
        device: Name of a torch device.
        dtype: Name of a torch dtype, for the base and the factors.

    Raises:
        ModelError: A file is missing, or the base is missing or another one than the factors were made from.
        FormatError: A newer nullarm wrote it.
        IntegrityError: A file is cut short or altered.
    """
    ref = _read_config(_existing(Path(directory) / CONFIG_FILE))["base"]["model"]
    compressed = read_for(directory, ref, content_id(ref))
    model, tokenizer = load_causal_lm(ref, device=device, dtype=dtype)
    install(model, compressed)
    return model, tokenizer


def to_bytes(compressed: Compressed) -> bytes:
    """Some compressed matrices as a safetensors file that describes itself; `save` holds no second copy."""
    tensors, groups = encode(compressed)
    data: bytes = safetensors.torch.save(tensors, {"groups": json.dumps(groups)})
    return data


def from_bytes(data: bytes) -> Compressed:
    """What `to_bytes` was given.

    Raises:
        IntegrityError: These are other bytes.
    """
    try:
        return decode(safetensors.torch.load(data), _header(data))
    except (struct.error, ValueError, KeyError, SafetensorError) as error:
        raise IntegrityError(f"the bytes are no compressed matrices: {error}", value=len(data)) from error


def _header(data: bytes) -> Any:
    """The groups, which safetensors itself reads from files only."""
    (length,) = struct.unpack_from("<Q", data)
    return json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["groups"])


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise ModelError(
            f"{path.parent} is no compressed model, it lacks {path.name}",
            valid=f"a directory with {CONFIG_FILE} and {TENSOR_FILE}",
            next_command=f"ls {path.parent}",
        )
    return path


def _read_config(path: Path) -> dict[str, Any]:
    described = read_json(path)
    if not isinstance(described, dict) or "format" not in described:
        raise IntegrityError(f"{path} is damaged: it has no format", next_command=_SAVE_AGAIN)
    if described["format"] != FORMAT:
        raise FormatError(
            f"{path} has an unknown format", value=described["format"], valid=[FORMAT], next_command="update nullarm"
        )
    claimed = described.pop("sha256", None)
    if claimed != _own_hash(described):
        raise IntegrityError(f"{path} is damaged: its SHA-256 differs", next_command=_SAVE_AGAIN)
    return described


def _check(path: Path, expected: Mapping[str, Any]) -> None:
    if (found := size_bytes(path)) != expected["bytes"]:
        raise IntegrityError(f"{path} has {found} of {expected['bytes']} bytes", next_command=_SAVE_AGAIN)
    if sha256_path(path) != expected["sha256"]:
        raise IntegrityError(f"{path} is damaged: its SHA-256 differs", next_command=_SAVE_AGAIN)


def _write_tensors(path: Path, tensors: Mapping[str, Tensor], groups: list[dict[str, Any]]) -> dict[str, Any]:
    """Write the file, and say its size and hash."""
    staging = path.with_name(f"{TEMP_PREFIX}{path.name}-{uuid.uuid4().hex[:12]}")
    try:
        with _written_by_safetensors(path):
            staging.touch()
            mode = staging.stat().st_mode
            safetensors.torch.save_file(dict(tensors), staging, {"groups": json.dumps(groups)})
            staging.chmod(mode)  # safetensors puts a file of its own there, for the owner's eyes only
        found = {"bytes": size_bytes(staging), "sha256": sha256_path(staging)}
        publish_file(staging, path)
    finally:
        staging.unlink(missing_ok=True)
    return found


@contextmanager
def _written_by_safetensors(path: Path) -> Iterator[None]:
    try:
        with storage_errors(path):
            yield
    except SafetensorError as error:
        raise StorageError(f"cannot write {path}: {error}", next_command="check the disk, then save again") from error


def _own_hash(described: Mapping[str, Any]) -> str:
    return sha256_bytes(encode_json(described))
