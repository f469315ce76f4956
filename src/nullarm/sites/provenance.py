"""Which code, packages and machine a result came from."""

from __future__ import annotations

import platform
import shutil
import socket
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

import nullarm

PACKAGES = ("torch", "transformers", "peft", "accelerate", "tokenizers", "numpy", "scipy", "statsmodels", "pyarrow")


@cache
def provenance() -> dict[str, Any]:
    """Code, packages and machine of this process, as plain data."""
    return {
        "nullarm": nullarm.__version__,
        "git": git_state(Path(nullarm.__file__).parent),
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "host": socket.gethostname(),
        "system": platform.platform(),
        "gpus": [gpu["name"] for gpu in gpus()],
    }


def git_state(directory: Path) -> dict[str, Any] | None:
    """Commit of the checkout around `directory` and whether it has changes; None outside a checkout."""
    commit = _output(["git", "-C", str(directory), "rev-parse", "HEAD"])
    if commit is None:
        return None
    changes = _output(["git", "-C", str(directory), "status", "--porcelain", "--untracked-files=no"])
    return {"commit": commit.strip(), "changed": bool(changes and changes.strip())}


@cache
def gpus() -> tuple[dict[str, Any], ...]:
    """Name, memory (bytes, total and free) and driver of each NVIDIA GPU, as `nvidia-smi` tells; empty without one."""
    if shutil.which("nvidia-smi") is None:
        return ()
    query = "name,memory.total,memory.free,driver_version"
    text = _output(["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits"]) or ""
    rows = [[part.strip() for part in line.split(",")] for line in text.splitlines() if line.count(",") == 3]
    main = psutil.virtual_memory()  # a GPU that shares the main memory tells no size of its own
    return tuple(
        {
            "name": name,
            "memory_bytes": int(total) << 20 if total.isdigit() else main.total,
            "free_bytes": int(free) << 20 if free.isdigit() else main.available,
            "driver": driver,
        }
        for name, total, free, driver in rows
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _output(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
