"""Content hashes: of settings, and of large files with the answer remembered."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from nullarm.models.cache import cache_dir


def settings_hash(settings: Any, code: Iterable[Path] = ()) -> str:
    """SHA-256, in hex, of JSON-able settings and of the bytes of the source files that give them meaning."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, allow_nan=False).encode())
    for path in code:
        digest.update(b"\0" + path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hex; a file unchanged since it was last hashed is not read again.

    The answer is kept in the cache directory under the file's path, and believed while size, modification time and
    inode are the same. A cache that cannot be written costs time, nothing else.

    Raises:
        OSError: The file cannot be read.
    """
    path = path.resolve()
    stat = path.stat()
    identity = [str(path), stat.st_size, stat.st_mtime_ns, stat.st_ino]
    note = cache_dir() / "file-hashes" / f"{hashlib.sha256(str(path).encode()).hexdigest()[:40]}.json"
    with suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(note.read_text("utf-8"))
        if known["identity"] == identity:
            return str(known["sha256"])
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    with suppress(OSError):
        _replace(note, json.dumps({"identity": identity, "sha256": digest}))
    return digest


def _replace(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temp = tempfile.mkstemp(dir=path.parent, prefix=".tmp-")
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(temp, path)
