"""Cells in this process, one after the other: for debugging and notebooks."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import final

from nullarm.engines.base import Ended, Engine, Event, Job, Progress, read_log


@final
class InlineEngine(Engine):
    """Runs each job inside `poll`. A breakpoint in a cell stops there."""

    def __init__(self) -> None:
        self._waiting: deque[Job] = deque()
        self._submitted: set[tuple[str, int]] = set()
        self._cancelled: set[str] = set()

    def room(self) -> int:
        """One job at a time."""
        return 0 if self._waiting else 1

    def submit(self, job: Job) -> None:
        """Queue a job for the next `poll`."""
        if (job.cell_id, job.attempt) not in self._submitted:
            self._submitted.add((job.cell_id, job.attempt))
            self._cancelled.discard(job.cell_id)
            self._waiting.append(job)

    def poll(self, timeout_s: float) -> list[Event]:
        """Run the waiting job to its end."""
        if not self._waiting:
            return []
        from nullarm.worker import run_cell  # the worker imports protocols, which an engine otherwise never does

        job = self._waiting.popleft()
        events: list[Event] = []
        code = run_cell(
            job.root,
            job.cell_id,
            job.attempt,
            lambda: job.cell_id in self._cancelled,
            lambda done, total, note: events.append(Progress(job, done, total, note)),
        )
        return [*events, Ended(job, code)]

    def cancel(self, cell_id: str, *, at_once: bool = False) -> None:
        """Stop a cell at its next safe point."""
        self._cancelled.add(cell_id)

    def logs(self, root: Path, cell_id: str) -> str:
        """The cell's log, which an inline cell leaves empty: it prints to this process."""
        return read_log(root, cell_id)

    def fetch(self, root: Path, cell_id: str) -> None:
        """Nothing to do: the cell wrote to the study directory."""

    def close(self) -> None:
        """Forget waiting jobs."""
        self._waiting.clear()
