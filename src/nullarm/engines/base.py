"""The contract of every engine: submit, poll, cancel, logs, fetch. The store, never the engine, says what is done."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from nullarm.store.paths import StudyPaths


@dataclass(frozen=True)
class Job:
    """One attempt at one cell."""

    root: Path
    """The study directory."""
    cell_id: str
    attempt: int
    """The fencing token of this attempt."""
    cpus: int = 1
    gpus: int = 0

    @property
    def key(self) -> tuple[Path, str, int]:
        """What makes it the same job."""
        return (self.root, self.cell_id, self.attempt)


@dataclass(frozen=True)
class Progress:
    """A running job tells how far it is."""

    job: Job
    done: int
    total: int
    note: str


@dataclass(frozen=True)
class Ended:
    """A job is over. Whether its cell is finished, the store knows."""

    job: Job
    exit_code: int | None
    """Of the worker; None when it vanished without one."""


Event = Progress | Ended


class Engine(ABC):
    """Runs jobs somewhere.

    `submit` is idempotent by cell and attempt. An engine's word that a job ended well is never believed without a valid
    record in the store.
    """

    @abstractmethod
    def room(self) -> int:
        """How many more jobs would start at once."""

    @abstractmethod
    def submit(self, job: Job) -> None:
        """Start a job; a job that was submitted before is left as it is."""

    @abstractmethod
    def poll(self, timeout_s: float) -> list[Event]:
        """Events since the last call, waiting up to `timeout_s` for the first."""

    @abstractmethod
    def cancel(self, cell_id: str, *, at_once: bool = False) -> None:
        """Ask a cell's job to stop at its next safe point, or kill it at once. Unknown cells are ignored."""

    @abstractmethod
    def logs(self, root: Path, cell_id: str) -> str:
        """What the cell's attempts have printed."""

    @abstractmethod
    def fetch(self, root: Path, cell_id: str) -> None:
        """Bring the cell's files into the study directory, where the engine does not write there itself."""

    @abstractmethod
    def close(self) -> None:
        """End every job and free what the engine holds."""


def read_log(root: Path, cell_id: str) -> str:
    """The cell's log in the study directory; empty when there is none."""
    path = StudyPaths(root).cell(cell_id).log
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
