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
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

import psutil

from nullarm.errors import IntegrityError, LeaseLost
from nullarm.store.atomic import storage_errors, write_bytes
from nullarm.store.files import encode_json, read_json
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
        return _started(self.pid) == self.started


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
        self._held: dict[CellPaths, int] = {}

    def claim(self, paths: CellPaths) -> Lease | None:
        """Take the cell with the next attempt number, or return None while somebody else holds it.

        Raises:
            IntegrityError: The lease is damaged, so that nobody knows which attempt would be the next.
        """
        with cell_lock(paths):
            held = read_lease(paths)
            if held is not None and not held.released and self._alive(paths, held):
                return None
            lease = Lease(attempt=held.attempt + 1 if held else 1, owner=self.owner)
            self._held[paths] = lease.attempt
            _write(paths, lease)
        return lease

    def release(self, paths: CellPaths) -> None:
        """Give the cell free; the attempt number is kept. A lease that was lost is left to its owner."""
        with cell_lock(paths):
            held = read_lease(paths)
            if held is not None and held.attempt == self._held.get(paths):
                # A power cut may undo this: then the lease is a dead owner's, which is as good.
                _write(paths, replace(held, released=True), sync_name=False)
        self._held.pop(paths, None)

    def release_all(self) -> None:
        """Give every cell free that was claimed here."""
        for paths in list(self._held):
            self.release(paths)

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
    """The lease as written, or None when the cell was never claimed.

    Raises:
        IntegrityError: The file is damaged.
    """
    if not paths.lease.exists():
        return None
    try:
        data = read_json(paths.lease)
        return Lease(int(data["attempt"]), Owner(**data["owner"]), int(data["beat"]), bool(data["released"]))
    except (IntegrityError, KeyError, TypeError, ValueError) as error:
        raise IntegrityError(
            f"{paths.lease} is damaged",
            next_command=f"make sure that no run is at work here, remove {paths.lease}, then `nullarm resume`",
        ) from error


def beat(paths: CellPaths, attempt: int) -> None:
    """Show other machines that the owner lives.

    Raises:
        LeaseLost: A later attempt owns the cell.
    """
    with fenced(paths, attempt) as held:
        _write(paths, replace(held, beat=held.beat + 1))


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


def _write(paths: CellPaths, lease: Lease, *, sync_name: bool = True) -> None:
    write_bytes(paths.lease, encode_json(asdict(lease)), sync_name=sync_name)


@cache
def _owner(pid: int) -> Owner:
    started = _started(pid)
    if started is None:
        raise ProcessLookupError(f"no process {pid}")
    return Owner(_host(), _boot(), pid, started)


def _started(pid: int) -> float | None:
    """When a process started; None when it is gone, or a zombie that nobody has waited for yet."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else float(fields[19])
    except OSError:
        return None if Path("/proc/self/stat").exists() else _started_elsewhere(pid)


def _started_elsewhere(pid: int) -> float | None:
    """The same on systems without `/proc`."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.NoSuchProcess:
        return None


@cache
def _host() -> str:
    return socket.gethostname()


@cache
def _boot() -> str:
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else str(int(psutil.boot_time()))
