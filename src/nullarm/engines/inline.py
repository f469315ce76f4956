"""Cells in this process, one after the other: for debugging and notebooks."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from contextlib import redirect_stdout
from io import TextIOBase
from pathlib import Path
from typing import TextIO, final

from nullarm.engines.base import Ended, Engine, Event, Job, Progress, read_log
from nullarm.store.paths import StudyPaths


@final
class InlineEngine(Engine):
    """Runs each job inside `poll`. A breakpoint in a cell stops there.

    Args:
        should_stop: Whether a stop was asked for while a cell runs, which is the only time this engine can look.
    """

    def __init__(self, should_stop: Callable[[], bool] = lambda: False) -> None:
        self._should_stop = should_stop
        self._waiting: deque[Job] = deque()
        self._submitted: set[tuple[Path, str, int]] = set()
        self._cancelled: set[str] = set()
        self._news: list[Event] = []

    def room(self) -> int:
        """One job at a time."""
        return 0 if self._waiting else 1

    def submit(self, job: Job) -> None:
        """Queue a job for the next `poll`."""
        if job.key not in self._submitted:
            self._submitted.add(job.key)
            self._cancelled.discard(job.cell_id)
            self._waiting.append(job)

    def poll(self, timeout_s: float) -> list[Event]:
        """Run the waiting job to its end."""
        if self._waiting:
            self._run(self._waiting.popleft())
        news, self._news = self._news, []
        return news

    def cancel(self, cell_id: str, *, at_once: bool = False) -> None:
        """Stop a cell at its next safe point: a process cannot kill a part of itself."""
        self._cancelled.add(cell_id)

    def logs(self, root: Path, cell_id: str) -> str:
        """The cell's log; its output also goes to this process's standard error."""
        return read_log(root, cell_id)

    def fetch(self, root: Path, cell_id: str) -> None:
        """Nothing to do: the cell wrote to the study directory."""

    def close(self) -> None:
        """Forget waiting jobs."""
        self._waiting.clear()

    def _run(self, job: Job) -> None:
        from nullarm.worker import run_cell  # the worker imports protocols, which an engine otherwise never does

        code: int | None = None
        try:
            with open(StudyPaths(job.root).cell(job.cell_id).log, "a", encoding="utf-8") as log:
                with redirect_stdout(_Tee(log, sys.stderr)):
                    code = run_cell(
                        job.root,
                        job.cell_id,
                        job.attempt,
                        lambda: job.cell_id in self._cancelled or self._should_stop(),
                        lambda done, total, note: self._news.append(Progress(job, done, total, note)),
                    )
        finally:  # also after Ctrl-C, whose end of the job the next `poll` tells
            self._news.append(Ended(job, code))


class _Tee(TextIOBase):
    """Writes to several streams."""

    def __init__(self, *streams: TextIO) -> None:
        self._streams = streams

    def write(self, text: str) -> int:
        for stream in self._streams:
            stream.write(text)
        return len(text)

    def flush(self) -> None:
        for stream in self._streams:
            stream.flush()
