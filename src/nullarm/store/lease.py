"""Who may write to a cell: leases whose fencing token is the number of the attempt.

A claim raises the attempt. Every commit checks, under the cell's file lock, that its attempt is still the current one;
a late writer is refused with `LeaseLost`. Whether an owner on this machine still lives is read from the process table,
so no clock is involved; an owner on another machine is alive until its `beat` has stood still for `BEAT_TIMEOUT_S` by
the observer's clock.
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import psutil

from nullarm.errors import LeaseLost
from nullarm.store.atomic import storage_errors
from nullarm.store.files import read_json, write_json
from nullarm.store.paths import CellPaths

BEAT_TIMEOUT_S = 90.0


@dataclass(frozen=True)
class Owner:
    """The process that holds a lease."""

    host: str
    boot: str
    pid: int
    started: float
    """Start time of the process, so that a reused process id is told apart: ticks since boot, which no clock change
    moves, where the kernel tells them."""

    def alive(self) -> bool | None:
        """Whether the process lives; None when it is on another machine and cannot be seen."""
        if self.host != _host():
            return None
        if self.boot != _boot():
            return False
        try:
            return _started(self.pid) == self.started
        except psutil.NoSuchProcess:
            return False


@dataclass(frozen=True)
class Lease:
    """The right to write to a cell as its attempt number `attempt`."""

    attempt: int
    owner: Owner
    beat: int = 0
    released: bool = False


def this_process() -> Owner:
    """The calling process as an owner."""
    return _owner(os.getpid())


class Leases:
    """Claims and releases leases for one owner, and remembers when it last saw a foreign owner's beat move."""

    def __init__(self, owner: Owner | None = None) -> None:
        self.owner = owner or this_process()
        self._seen: dict[Path, tuple[int, int, float]] = {}

    def claim(self, paths: CellPaths) -> Lease | None:
        """Take the cell with the next attempt number, or return None while somebody else holds it."""
        with cell_lock(paths):
            held = read_lease(paths)
            if held is not None and not held.released and self._alive(paths, held):
                return None
            lease = Lease(attempt=held.attempt + 1 if held else 1, owner=self.owner)
            _write(paths, lease)
        return lease

    def release(self, paths: CellPaths, lease: Lease) -> None:
        """Give the cell free; the attempt number is kept. A lease that was lost is left to its owner."""
        with cell_lock(paths):
            held = read_lease(paths)
            if held is not None and held.attempt == lease.attempt:
                _write(paths, Lease(lease.attempt, lease.owner, held.beat, released=True))

    def _alive(self, paths: CellPaths, held: Lease) -> bool:
        alive = held.owner.alive()
        if alive is not None:
            return alive
        now = time.monotonic()
        attempt, beat, since = self._seen.get(paths.root, (-1, -1, now))
        if (attempt, beat) != (held.attempt, held.beat):
            since = now
        self._seen[paths.root] = (held.attempt, held.beat, since)
        return now - since < BEAT_TIMEOUT_S


def read_lease(paths: CellPaths) -> Lease | None:
    """The lease as written, or None when the cell was never claimed."""
    if not paths.lease.exists():
        return None
    data = read_json(paths.lease)
    return Lease(data["attempt"], Owner(**data["owner"]), data["beat"], data["released"])


def beat(paths: CellPaths, attempt: int) -> None:
    """Show other machines that the owner lives.

    Raises:
        LeaseLost: A later attempt owns the cell.
    """
    with fenced(paths, attempt) as held:
        _write(paths, Lease(held.attempt, held.owner, held.beat + 1, held.released))


@contextmanager
def fenced(paths: CellPaths, attempt: int) -> Iterator[Lease]:
    """Hold the cell's lock for one commit of attempt `attempt`.

    Raises:
        LeaseLost: A later attempt owns the cell.
    """
    with cell_lock(paths):
        held = read_lease(paths)
        if held is None or held.attempt != attempt:
            raise LeaseLost(
                f"attempt {attempt} of cell {paths.root.name} may not write: "
                f"attempt {held.attempt if held else 'none'} owns the cell"
            )
        yield held


@contextmanager
def cell_lock(paths: CellPaths) -> Iterator[None]:
    """Exclusive lock on one cell, across processes."""
    with storage_errors(paths.lock):
        descriptor = os.open(paths.lock, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write(paths: CellPaths, lease: Lease) -> None:
    write_json(paths.lease, asdict(lease))


@cache
def _owner(pid: int) -> Owner:
    return Owner(_host(), _boot(), pid, _started(pid))


def _started(pid: int) -> float:
    stat = Path(f"/proc/{pid}/stat")
    if stat.exists():
        try:
            return float(stat.read_text().rpartition(")")[2].split()[19])
        except (OSError, IndexError) as error:
            raise psutil.NoSuchProcess(pid) from error
    return psutil.Process(pid).create_time()


@cache
def _host() -> str:
    return socket.gethostname()


@cache
def _boot() -> str:
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else str(int(psutil.boot_time()))
