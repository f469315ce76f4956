"""An engine that does what a test says, in this process and without a clock."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import final

from nullarm.engines.base import Ended, Engine, Event, Job


@final
class ScriptedEngine(Engine):
    """Asks `script` what happens to each job.

    Args:
        script: Called with a job when it is polled; returns its exit code, or None for one that goes on.
        at_once: Jobs at a time.
        deaf: Jobs do not end when they are cancelled.
    """

    def __init__(self, script: Callable[[Job], int | None], at_once: int = 1, *, deaf: bool = False) -> None:
        self.script = script
        self.at_once = at_once
        self.deaf = deaf
        self.running: list[Job] = []
        self.submitted: list[Job] = []
        self.cancelled: list[tuple[str, bool]] = []
        self.closed = False
        self.events: list[Event] = []
        """Told at the next poll."""

    def room(self) -> int:
        return self.at_once - len(self.running)

    def submit(self, job: Job) -> None:
        self.submitted.append(job)
        self.running.append(job)

    def poll(self, timeout_s: float) -> list[Event]:
        events, self.events = self.events, []
        for job in list(self.running):
            if (code := self.script(job)) is not None:
                self.running.remove(job)
                events.append(Ended(job, code))
        return events

    def cancel(self, cell_id: str, *, at_once: bool = False) -> None:
        """A job that is cancelled ends with 75 at the next poll."""
        self.cancelled.append((cell_id, at_once))
        if self.deaf:
            return
        for job in [job for job in self.running if job.cell_id == cell_id]:
            self.running.remove(job)
            self.events.append(Ended(job, 75))

    def logs(self, root: Path, cell_id: str) -> str:
        return ""

    def fetch(self, root: Path, cell_id: str) -> None:
        """The script wrote to the study directory."""

    def close(self) -> None:
        self.closed = True
