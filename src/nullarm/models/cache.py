"""Where nullarm keeps what it can make again: built models and the hashes of large files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nullarm.errors import StorageError


def cache_dir() -> Path:
    """`NULLARM_CACHE`, or `~/.cache/nullarm` (under `XDG_CACHE_HOME` when that is set)."""
    if own := os.environ.get("NULLARM_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "nullarm"


@contextmanager
def writing_to(directory: Path) -> Iterator[None]:
    """Say which directory could not be written, and how to use another.

    Raises:
        StorageError: In place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"a model cannot be written: {error.strerror or error}",
            value=str(directory),
            next_command="NULLARM_CACHE=<a directory with room> and the same command",
        ) from error
