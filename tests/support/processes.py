"""Processes that a test started: whether they live, and waiting for something without a clock in the assertion."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import psutil

PATIENCE_S = 120.0
"""How long a test waits before it calls a thing that must happen one that did not; generous, machines are shared."""

ResultT = TypeVar("ResultT")


def eventually(look: Callable[[], ResultT | None], what: str) -> ResultT:
    """The first result of `look` that is neither None nor False.

    Raises:
        AssertionError: It did not come within `PATIENCE_S`.
    """
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        found = look()
        if found is not None and found is not False:
            return found
        time.sleep(0.02)
    raise AssertionError(f"waited {PATIENCE_S:.0f} s in vain for {what}")


def workers_of(root: object) -> list[psutil.Process]:
    """Living nullarm workers of the study directories under `root`."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        command = process.info["cmdline"] or []
        mine = "nullarm.worker" in command and any(argument.startswith(str(root)) for argument in command)
        if mine and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def ended(process: psutil.Process) -> bool:
    """Whether a process is gone, or only waits to be waited for."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
