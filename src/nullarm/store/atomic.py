"""Writes that are either there whole or not there: temp file, fsync, rename, directory fsync."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nullarm.errors import StorageError

TEMP_PREFIX = ".tmp-"


def write_bytes(path: Path, data: bytes, *, sync_name: bool = True) -> None:
    """Replace `path` by `data`: a reader sees the old file or the new one, never a part.

    Args:
        path: The file.
        data: Its new content.
        sync_name: Make the new name durable at once; without it, the next sync of the directory does.

    Raises:
        StorageError: The disk is full, read-only or gone; `path` is as it was.
    """
    temp = path.with_name(f"{TEMP_PREFIX}{path.name[:80]}-{uuid.uuid4().hex[:12]}")
    with storage_errors(path):
        try:
            with open(temp, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temp, path)
        except OSError:
            temp.unlink(missing_ok=True)
            raise
        if sync_name:
            sync_directory(path.parent)


def publish_file(staging: Path, target: Path) -> None:
    """Give a finished staging file its final name, with its content on disk first.

    Raises:
        StorageError: The disk is full, read-only or gone; what was at `target` is as it was.
    """
    with storage_errors(target):
        _sync_file(staging)
        os.replace(staging, target)
        sync_directory(target.parent)


def publish_directory(staging: Path, target: Path) -> None:
    """Give a finished staging directory its final name, with every file in it on disk first.

    Raises:
        StorageError: The disk is full, read-only or gone; `target` is not there.
    """
    with storage_errors(target):
        for path in sorted(staging.rglob("*")):
            if path.is_file():
                _sync_file(path)
            else:
                sync_directory(path)
        sync_directory(staging)
        os.rename(staging, target)
        sync_directory(target.parent)


def make_directory(*paths: Path) -> None:
    """Create directories and their parents, durably.

    Raises:
        StorageError: The disk is full, read-only or gone, or a file is in the way.
    """
    changed: dict[Path, None] = {}
    for path in paths:
        with storage_errors(path):
            changed |= dict.fromkeys(p.parent for p in (path, *path.parents) if not p.exists())
            path.mkdir(parents=True, exist_ok=True)
    for parent in changed:
        with storage_errors(parent):
            sync_directory(parent)


def sweep_temporary(directory: Path) -> None:
    """Remove what an interrupted write has left behind in `directory`."""
    for path in directory.glob(f"{TEMP_PREFIX}*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def sync_directory(directory: Path) -> None:
    """Make the names in `directory` durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusal to write into a `StorageError` that names the path and the cure."""
    try:
        yield
    except OSError as error:
        reasons = {
            errno.ENOSPC: ("the disk is full", f"free space on {path.parent}, then `nullarm resume`"),
            errno.EDQUOT: ("the disk quota is used up", f"free space on {path.parent}, then `nullarm resume`"),
            errno.EROFS: ("the file system is read-only", "choose another directory with `--dir`"),
            errno.EACCES: ("permission denied", "choose another directory with `--dir`"),
        }
        reason, cure = reasons.get(
            error.errno or 0, (error.strerror or str(error), "check the disk, then `nullarm resume`")
        )
        raise StorageError(f"cannot write {path}: {reason}", next_command=cure) from error


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
