"""Checkpoints that are either whole or not there, and a reader that falls back past damaged ones.

On disk, below one directory::

    step-00000200/
        parameters.safetensors   the trainable parameters
        optimizer.pt             the optimiser's state, read with weights_only=True
        tensors.safetensors      random states of each process, state of the step hook
        progress.json            losses so far, tokens, seconds, gradient scaler
        manifest.json            format, fingerprint, step, size and SHA-256 of every file above; hash of itself
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import pickle
import re
import shutil
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from nullarm.errors import ForeignStudyError, FormatError, IntegrityError
from nullarm.store.atomic import TEMP_PREFIX, make_directory, publish_directory, storage_errors, sweep_temporary

FORMAT = 1
MANIFEST = "manifest.json"
_NAME = re.compile(r"step-(\d{8,})")
_log = logging.getLogger(__name__)


def step_of(name: str) -> int:
    """Step of the checkpoint called `name`; -1 when it is no name of a checkpoint."""
    match = _NAME.fullmatch(name)
    return int(match[1]) if match else -1


@dataclass(frozen=True)
class TrainState:
    """All that a run needs to go on as if it had not stopped.

    Attributes:
        step: Optimiser steps done; also the sampler's position.
        parameters: Trainable parameters by name.
        optimizer: The optimiser's `state_dict()`.
        tensors: Random states and the step hook's state.
        progress: Losses so far and counters; JSON.
    """

    step: int
    parameters: Mapping[str, torch.Tensor]
    optimizer: Mapping[str, Any]
    tensors: Mapping[str, torch.Tensor]
    progress: Mapping[str, Any]


@dataclass(frozen=True)
class Skipped:
    """A checkpoint that was passed over."""

    name: str
    reason: str


class Checkpoints:
    """The checkpoints of one training run, in one directory.

    Args:
        directory: Created at the first `save`.
        fingerprint: What the run is (cell id, hash of its settings); a checkpoint with another one is refused.
        keep: Valid checkpoints kept.
    """

    def __init__(self, directory: Path, *, fingerprint: str, keep: int) -> None:
        self._directory, self._fingerprint, self._keep = directory, fingerprint, keep

    def save(self, state: TrainState) -> Path:
        """Write `state`, whole or not at all, then drop what is older than the last `keep` valid checkpoints.

        Raises:
            StorageError: The disk is full, read-only or gone; earlier checkpoints are as they were.
        """
        return self._publish(
            f"step-{state.step:08d}", lambda directory: _write_files(directory, state, self._fingerprint)
        )

    def adopt(self, name: str, fetch: Callable[[Path], None]) -> Path:
        """Publish a checkpoint that `fetch` brings into an empty directory, once all of it is found undamaged.

        Raises:
            IntegrityError: Something in it is missing, cut short or altered; nothing is published.
            StorageError, ForeignStudyError, FormatError: As for `save` and `latest_valid`.
        """

        def fetch_and_read(directory: Path) -> None:
            fetch(directory)
            _read(directory, self._fingerprint)

        return self._publish(name, fetch_and_read)

    def newest_valid_step(self) -> int:
        """Step of the newest undamaged checkpoint; -1 where there is none.

        Raises:
            ForeignStudyError, FormatError: As for `latest_valid`.
        """
        return next((step_of(p.name) for p in self._newest_first() if _is_valid(p, self._fingerprint)), -1)

    def latest_valid(self) -> tuple[TrainState | None, tuple[Skipped, ...]]:
        """The newest undamaged checkpoint, or None, and which newer ones were skipped and why.

        Raises:
            ForeignStudyError: An undamaged checkpoint belongs to something else.
            FormatError: A newer nullarm wrote it.
        """
        skipped: list[Skipped] = []
        for path in self._newest_first():
            try:
                return _read(path, self._fingerprint), tuple(skipped)
            except IntegrityError as error:
                _log.warning("skipped checkpoint %s: %s", path.name, error.problem)
                skipped.append(Skipped(path.name, error.problem))
        return None, tuple(skipped)

    def _newest_first(self) -> list[Path]:
        if not self._directory.is_dir():
            return []
        found = [path for path in self._directory.iterdir() if step_of(path.name) >= 0]
        return sorted(found, key=lambda path: step_of(path.name), reverse=True)

    def _publish(self, name: str, write: Callable[[Path], None]) -> Path:
        """Let `write` fill a directory and give it its final name, whole or not at all; then prune."""
        make_directory(self._directory)
        sweep_temporary(self._directory)
        target = self._directory / name
        staging = self._directory / f"{TEMP_PREFIX}{name}-{uuid.uuid4().hex[:8]}"
        try:
            with storage_errors(target):
                staging.mkdir()
                write(staging)
            _set_aside(target)
            publish_directory(staging, target)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        self._prune(written=target)
        return target

    def _prune(self, written: Path) -> None:
        """Remove all that is older than the `keep` newest valid checkpoints; `written` needs no second look."""
        valid = 0
        for path in self._newest_first():
            if valid == self._keep:
                _set_aside(path)
            elif path == written or _is_valid(path, self._fingerprint):
                valid += 1


class _HashingFile:
    """A file that hashes what it is asked to write: what the disk makes of it shows at the first read."""

    def __init__(self, file: io.BufferedWriter) -> None:
        self._file, self._digest, self.size_bytes = file, hashlib.sha256(), 0

    def write(self, data: bytes) -> int:
        self._digest.update(data)
        written = self._file.write(data)
        self.size_bytes += written
        return written

    def flush(self) -> None:
        self._file.flush()

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()


def _write_files(directory: Path, state: TrainState, fingerprint: str) -> None:
    """Write the files and, last, their manifest."""
    writers: dict[str, Callable[[_HashingFile], object]] = {
        "parameters.safetensors": lambda file: file.write(_encode(state.parameters)),
        "optimizer.pt": lambda file: torch.save(dict(state.optimizer), file),  # type: ignore[arg-type]
        "tensors.safetensors": lambda file: file.write(_encode(state.tensors)),
        "progress.json": lambda file: file.write(json.dumps(dict(state.progress), allow_nan=False).encode()),
    }
    files = {name: _write_hashed(directory / name, write) for name, write in writers.items()}
    content = {"format": FORMAT, "fingerprint": fingerprint, "step": state.step, "files": files}
    manifest = json.dumps({**content, "sha256": _content_hash(content)}, sort_keys=True).encode()
    _write_hashed(directory / MANIFEST, lambda file: file.write(manifest))


def _write_hashed(path: Path, write: Callable[[_HashingFile], object]) -> dict[str, Any]:
    with open(path, "wb") as file:
        hashing = _HashingFile(file)
        write(hashing)
    return {"sha256": hashing.sha256, "bytes": hashing.size_bytes}


def _encode(tensors: Mapping[str, torch.Tensor]) -> bytes:
    data: bytes = safetensors.torch.save({name: tensor.detach().contiguous() for name, tensor in tensors.items()})
    return data


def _content_hash(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _read(path: Path, fingerprint: str) -> TrainState:
    """Read a checkpoint, each file once, hashing the very bytes that are decoded.

    Raises:
        IntegrityError: Something in it is missing, cut short or altered.
    """
    manifest = _read_manifest(path, fingerprint)
    data = {name: _read_checked(path / name, entry) for name, entry in manifest["files"].items()}
    try:
        optimizer = torch.load(io.BytesIO(data["optimizer.pt"]), weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        raise IntegrityError("optimizer.pt holds more than tensors and plain values") from error
    return TrainState(
        step=manifest["step"],
        parameters=safetensors.torch.load(data["parameters.safetensors"]),
        optimizer=optimizer,
        tensors=safetensors.torch.load(data["tensors.safetensors"]),
        progress=json.loads(data["progress.json"]),
    )


def _read_manifest(path: Path, fingerprint: str) -> dict[str, Any]:
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        claimed = manifest.pop("sha256")
    except OSError as error:
        raise IntegrityError(f"{MANIFEST} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, AttributeError) as error:
        raise IntegrityError(f"{MANIFEST} is damaged") from error
    if claimed != _content_hash(manifest):
        raise IntegrityError(f"{MANIFEST} is damaged: its SHA-256 differs")
    if manifest["format"] != FORMAT:
        raise FormatError(f"checkpoint {path} has an unknown format", value=manifest["format"], valid=str(FORMAT))
    if manifest["fingerprint"] != fingerprint:
        raise ForeignStudyError(
            f"checkpoint {path} belongs to another run",
            value=manifest["fingerprint"],
            valid=fingerprint,
            next_command="choose another directory, or remove the checkpoint",
        )
    return dict(manifest)


def _read_checked(path: Path, entry: Mapping[str, Any]) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise IntegrityError(f"{path.name} cannot be read: {error.strerror}") from error
    if len(data) != entry["bytes"]:
        raise IntegrityError(f"{path.name} has {len(data)} of {entry['bytes']} bytes")
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise IntegrityError(f"{path.name} is damaged: its SHA-256 differs")
    return data


def _is_valid(path: Path, fingerprint: str) -> bool:
    try:
        for name, entry in _read_manifest(path, fingerprint)["files"].items():
            _read_checked(path / name, entry)
    except IntegrityError:
        return False
    return True


def _set_aside(path: Path) -> None:
    """Remove a checkpoint so that no half of it is ever taken for one: rename first, then delete."""
    if path.exists():
        aside = path.with_name(f"{TEMP_PREFIX}{path.name}-{uuid.uuid4().hex[:8]}")
        with storage_errors(path):
            os.rename(path, aside)
        shutil.rmtree(aside, ignore_errors=True)
