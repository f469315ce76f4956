"""Where nullarm keeps what it can make again: built models and the hashes of large files."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """`NULLARM_CACHE`, or `~/.cache/nullarm` (under `XDG_CACHE_HOME` when that is set)."""
    if own := os.environ.get("NULLARM_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "nullarm"
