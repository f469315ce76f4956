from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from nullarm.errors import StorageError
from nullarm.store.atomic import (
    TEMP_PREFIX,
    make_directory,
    publish_directory,
    storage_errors,
    sweep_temporary,
    write_bytes,
)
from support.disks import little_disk


def test_a_write_replaces_the_whole_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_bytes(path, b"old and longer")
    write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a.json"]


def test_file_and_name_are_on_disk_before_a_write_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write_bytes(tmp_path / "a", b"1")
    assert [Path(p).name.startswith(TEMP_PREFIX) for p in synced] == [True, False]
    assert synced[1] == str(tmp_path)
    synced.clear()
    write_bytes(tmp_path / "a", b"2", sync_name=False)
    assert str(tmp_path) not in synced


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    path = tmp_path / "a.json"
    write_bytes(path, b"old")

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, step, refuse)
    with pytest.raises(StorageError, match=r"cannot write .*a\.json: the disk is full; next: free space on"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_full_disk_refuses_and_keeps_what_was_committed(tmp_path: Path) -> None:
    with little_disk(tmp_path / "disk") as disk:
        path = disk.root / "a.json"
        write_bytes(path, b"old")
        disk.fill()
        with pytest.raises(StorageError, match="the disk is full"):
            write_bytes(path, b"x" * 100_000)
        assert path.read_bytes() == b"old"
        disk.free()
        write_bytes(path, b"new")
        assert path.read_bytes() == b"new"


def test_a_read_only_disk_says_so(tmp_path: Path) -> None:
    with little_disk(tmp_path / "disk") as disk:
        disk.make_read_only()
        with pytest.raises(StorageError, match="the file system is read-only; next: choose another directory"):
            write_bytes(disk.root / "a.json", b"new")


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "the disk is full; next: free space on /somewhere, then `nullarm resume`"),
        (errno.EDQUOT, "the disk quota is used up"),
        (errno.EROFS, "the file system is read-only; next: choose another directory with `--dir`"),
        (errno.EACCES, "permission denied; next: choose another directory with `--dir`"),
        (errno.EIO, "Input/output error; next: check the disk, then `nullarm resume`"),
    ],
)
def test_each_refusal_of_the_system_has_its_cure(number: int, words: str) -> None:
    with pytest.raises(StorageError) as caught, storage_errors(Path("/somewhere/file")):
        raise OSError(number, os.strerror(number))
    assert words in str(caught.value)


def test_an_error_without_a_number_is_told_as_it_is() -> None:
    with pytest.raises(StorageError, match="cannot write /x: strange"), storage_errors(Path("/x")):
        raise OSError("strange")


def test_directories_are_made_with_their_parents(tmp_path: Path) -> None:
    make_directory(tmp_path / "a" / "b", tmp_path / "a" / "c")
    make_directory(tmp_path / "a" / "b")
    assert sorted(os.listdir(tmp_path / "a")) == ["b", "c"]


def test_a_file_in_the_way_of_a_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    with pytest.raises(StorageError, match=f"cannot write {tmp_path}/a"):
        make_directory(tmp_path / "a" / "b")


def test_a_directory_is_published_whole(tmp_path: Path) -> None:
    staging = tmp_path / ".tmp-x"
    (staging / "inner").mkdir(parents=True)
    (staging / "inner" / "f").write_text("1")
    publish_directory(staging, tmp_path / "x")
    assert (tmp_path / "x" / "inner" / "f").read_text() == "1"
    assert not staging.exists()


def test_a_directory_is_not_published_over_another(tmp_path: Path) -> None:
    for name in ("staging", "target"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "f").write_text(name)
    with pytest.raises(StorageError, match="cannot write"):
        publish_directory(tmp_path / "staging", tmp_path / "target")
    assert (tmp_path / "target" / "f").read_text() == "target"


def test_the_sweep_takes_temporary_files_and_directories_only(tmp_path: Path) -> None:
    (tmp_path / f"{TEMP_PREFIX}file").write_text("")
    (tmp_path / f"{TEMP_PREFIX}dir").mkdir()
    (tmp_path / f"{TEMP_PREFIX}dir" / "inner").write_text("")
    (tmp_path / "kept").write_text("")
    sweep_temporary(tmp_path)
    assert os.listdir(tmp_path) == ["kept"]
