from __future__ import annotations

import errno
import io
import json
import os
import pickle
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from nullarm.errors import ForeignStudyError, FormatError, StorageError
from nullarm.training.checkpoint import MANIFEST, Checkpoints, TrainState, _content_hash

FILES = ["parameters.safetensors", "optimizer.pt", "tensors.safetensors", "progress.json", MANIFEST]


def state(step: int) -> TrainState:
    weight = torch.full((40, 3), float(step))
    return TrainState(
        step=step,
        parameters={"layer.weight": weight},
        optimizer={"state": {0: {"step": torch.tensor(float(step)), "exp_avg": weight / 2}}, "param_groups": []},
        tensors={"0/rng/torch": torch.arange(5, dtype=torch.uint8)},
        progress={"losses": [1.0 / 3.0] * step, "tokens": 7},
    )


def checkpoints(directory: Path, **changes: Any) -> Checkpoints:
    return Checkpoints(directory, **{"fingerprint": "cell-1", "keep": 2, **changes})


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    written = state(3)
    checkpoints(tmp_path / "new" / "directory").save(written)
    read, skipped = checkpoints(tmp_path / "new" / "directory").latest_valid()
    assert read is not None
    assert skipped == ()
    assert read.step == 3
    assert torch.equal(read.parameters["layer.weight"], written.parameters["layer.weight"])
    assert torch.equal(read.optimizer["state"][0]["exp_avg"], written.optimizer["state"][0]["exp_avg"])
    assert torch.equal(read.tensors["0/rng/torch"], written.tensors["0/rng/torch"])
    assert read.progress == written.progress


def test_without_a_directory_there_is_none(tmp_path: Path) -> None:
    assert checkpoints(tmp_path / "absent").latest_valid() == (None, ())


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [flip_a_bit, truncate, empty, Path.unlink])
def test_a_damaged_checkpoint_is_passed_over_and_named(
    tmp_path: Path, name: str, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    for step in (1, 2):
        checkpoints(tmp_path).save(state(step))
    damage(tmp_path / "step-00000002" / name)
    read, skipped = checkpoints(tmp_path).latest_valid()
    assert read is not None
    assert read.step == 1
    assert [entry.name for entry in skipped] == ["step-00000002"]
    assert skipped[0].reason.startswith(name)
    assert "skipped checkpoint step-00000002" in caplog.text


def test_every_flipped_bit_of_a_manifest_is_noticed(tmp_path: Path) -> None:
    path = checkpoints(tmp_path).save(state(1)) / MANIFEST
    whole = path.read_bytes()
    for position in range(0, len(whole), 7):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :])
        read, skipped = checkpoints(tmp_path).latest_valid()
        assert read is None, position
        assert skipped[0].reason.startswith(MANIFEST)


def test_when_all_are_damaged_all_are_named_newest_first(tmp_path: Path) -> None:
    for step in (1, 2):
        flip_a_bit(checkpoints(tmp_path).save(state(step)) / "optimizer.pt")
    read, skipped = checkpoints(tmp_path).latest_valid()
    assert read is None
    assert [entry.name for entry in skipped] == ["step-00000002", "step-00000001"]


def test_the_last_n_are_kept(tmp_path: Path) -> None:
    for step in range(1, 6):
        checkpoints(tmp_path, keep=3).save(state(step))
    assert names(tmp_path) == ["step-00000003", "step-00000004", "step-00000005"]


def test_a_damaged_one_does_not_count_among_the_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        checkpoints(tmp_path, keep=3).save(state(step))
    flip_a_bit(tmp_path / "step-00000003" / "parameters.safetensors")
    checkpoints(tmp_path, keep=3).save(state(4))
    assert "step-00000001" in names(tmp_path)
    flip_a_bit(tmp_path / "step-00000004" / "parameters.safetensors")
    read, _ = checkpoints(tmp_path).latest_valid()
    assert read is not None
    assert read.step == 2


def test_a_damaged_one_is_replaced_when_its_step_is_reached_again(tmp_path: Path) -> None:
    flip_a_bit(checkpoints(tmp_path).save(state(2)) / "optimizer.pt")
    checkpoints(tmp_path).save(state(2))
    read, skipped = checkpoints(tmp_path).latest_valid()
    assert read is not None
    assert skipped == ()
    assert names(tmp_path) == ["step-00000002"]


def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path) -> None:
    checkpoints(tmp_path).save(state(1))
    with pytest.raises(ForeignStudyError, match=r"step-00000001 belongs to another run; got 'cell-1'; valid: cell-2"):
        checkpoints(tmp_path, fingerprint="cell-2").latest_valid()


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    path = checkpoints(tmp_path).save(state(1)) / MANIFEST
    manifest = json.loads(path.read_bytes())
    del manifest["sha256"]
    manifest["format"] = 2
    path.write_text(json.dumps({**manifest, "sha256": _content_hash(manifest)}))
    with pytest.raises(FormatError, match="unknown format; got 2; valid: 1"):
        checkpoints(tmp_path).latest_valid()


class Malicious:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, ...]]:
        return os.mkdir, ("executed",)


def test_a_pickle_with_code_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    real_save = torch.save

    def save_with_code(_: object, file: Any) -> None:
        buffer = io.BytesIO()
        real_save({"state": Malicious()}, buffer)
        file.write(buffer.getvalue())

    monkeypatch.setattr(torch, "save", save_with_code)
    path = checkpoints(tmp_path).save(state(1))
    assert b"mkdir" in (path / "optimizer.pt").read_bytes()
    read, skipped = checkpoints(tmp_path).latest_valid()
    assert read is None
    assert skipped[0].reason == "optimizer.pt holds more than tensors and plain values"
    assert not (tmp_path / "executed").exists()
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path / "optimizer.pt", weights_only=True)


@contextmanager
def largest_file(size_bytes: int) -> Iterator[None]:
    """Writes beyond `size_bytes` of a file fail part-way, as they do on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size_bytes", [0, 100, 600, 1500])
def test_a_write_cut_short_leaves_earlier_checkpoints_alone(tmp_path: Path, size_bytes: int) -> None:
    checkpoints(tmp_path).save(state(1))
    with largest_file(size_bytes), pytest.raises(StorageError, match=r"cannot write .*step-00000002"):
        checkpoints(tmp_path).save(state(2))
    assert names(tmp_path) == ["step-00000001"]
    read, skipped = checkpoints(tmp_path).latest_valid()
    assert read is not None
    assert (read.step, skipped) == (1, ())


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_a_full_disk_is_named_with_the_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    checkpoints(tmp_path).save(state(1))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(StorageError, match="the disk is full; next: free space"):
        checkpoints(tmp_path).save(state(2))
    assert names(tmp_path) == ["step-00000001"]


def test_what_a_killed_write_left_is_no_checkpoint_and_is_swept(tmp_path: Path) -> None:
    path = checkpoints(tmp_path).save(state(1))
    path.rename(tmp_path / ".tmp-step-00000009-abcdef01")
    assert checkpoints(tmp_path).latest_valid() == (None, ())
    checkpoints(tmp_path).save(state(2))
    assert names(tmp_path) == ["step-00000002"]
