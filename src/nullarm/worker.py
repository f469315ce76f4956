"""Runs cells anywhere: `python -m nullarm.worker STUDY_DIR CELL ATTEMPT`, or `--serve` for one after the other.

Events go to standard output as JSON lines: `{"event": "progress", "done": 3, "total": 10, "note": "steps"}` and
`{"event": "ended", "cell": …, "attempt": …, "exit_code": 0}`. What the cell prints goes to its log. A worker that
serves reads `{"cell": …, "attempt": …}` lines from standard input and leaves as soon as its input closes: it never
outlives its coordinator. SIGTERM and SIGUSR1 stop the cell at its next safe point; exit code 75 then says "requeue
me".
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from nullarm.errors import FormatError, IntegrityError, LeaseLost, NullarmError, Preempted
from nullarm.protocols import find_protocol
from nullarm.protocols.base import CellContext
from nullarm.sites.provenance import provenance
from nullarm.store.cell import CellWriter, Failure, finished, write_failure
from nullarm.store.files import read_json
from nullarm.store.lease import beat
from nullarm.store.paths import CellPaths, StudyPaths
from nullarm.store.record import FinishedCell
from nullarm.study.plan import Cell
from nullarm.training.signals import StopFlag, stop_on_signals

BEAT_INTERVAL_S = 30.0
CRASHED = 1
"""Exit code of a cell that raised something which is no `NullarmError`."""

Progress = Callable[[int, int, str], None]


def run_cell(root: Path, cell_id: str, attempt: int, should_stop: Callable[[], bool], progress: Progress) -> int:
    """Run one cell to its record.

    Args:
        root: The study directory.
        cell_id: The cell.
        attempt: The fencing token that the coordinator claimed for this run.
        should_stop: Looked at between chunks.
        progress: Told how far the cell is.

    Returns:
        0 when the record is there, 75 when it stopped on request, the error's exit code or 1 when it failed; the
        reason is then in `failure.json` and the log.
    """
    paths = StudyPaths(root).cell(cell_id)
    try:
        _work(root, paths, attempt, should_stop, progress)
    except Preempted as stop:
        _say(f"stopped at a safe point: {stop}")
        return Preempted.exit_code
    except LeaseLost as lost:
        _say(f"another attempt owns this cell: {lost}")
        return LeaseLost.exit_code
    except NullarmError as error:
        _say(f"error: {error}")
        _note_failure(paths, Failure(attempt, error.kind, str(error), error.exit_code))
        return error.exit_code
    except Exception as error:
        _say(traceback.format_exc())
        _note_failure(paths, Failure(attempt, type(error).__name__, str(error), CRASHED))
        return CRASHED
    return 0


def _work(root: Path, paths: CellPaths, attempt: int, should_stop: Callable[[], bool], progress: Progress) -> None:
    started = time.monotonic()
    cell = _read_cell(paths)
    protocol = find_protocol(cell.protocol)
    if protocol.version != cell.version:
        raise FormatError(
            f"cell {cell.id} was planned for version {cell.version} of protocol {protocol.name}",
            value=protocol.version,
            next_command="plan the study again with `nullarm run`",
        )
    writer = CellWriter(paths, attempt)
    context = CellContext(cell, writer, _needs(root, cell), should_stop, progress)
    result = protocol.run_cell(context)
    writer.commit(
        result.metrics,
        outcome=result.outcome,
        reason=result.reason,
        seconds=time.monotonic() - started,
        provenance=provenance(),
    )


def _read_cell(paths: CellPaths) -> Cell:
    cell = Cell.from_json(read_json(paths.cell))
    if cell.id != paths.root.name:
        raise IntegrityError(f"{paths.cell} was changed: its content has id {cell.id}", next_command="remove it")
    return cell


def _needs(root: Path, cell: Cell) -> dict[str, FinishedCell]:
    found = {role: finished(StudyPaths(root).cell(need)) for role, need in cell.needs.items()}
    if missing := [role for role, need in found.items() if need is None]:
        raise IntegrityError(
            f"cell {cell.id} needs {missing[0]!r}, which is not finished", next_command="nullarm resume"
        )
    return {role: need for role, need in found.items() if need is not None}


def _note_failure(paths: CellPaths, failure: Failure) -> None:
    with contextlib.suppress(NullarmError):  # a full disk or a lost lease: the exit code still tells
        write_failure(paths, failure)


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # a log that cannot be written is no reason to fail
        print(text, flush=True)


def serve(root: Path) -> int:
    """Run the cells named on standard input, one after the other, until it closes.

    Returns:
        0 at the end of input, else the exit code of the first cell that did not end well.
    """
    jobs = _read_jobs()
    with _events() as events, stop_on_signals() as stop:
        while (job := jobs.get()) is not None:
            if (code := _run_logged(root, str(job["cell"]), int(job["attempt"]), stop, events)) != 0:
                return code
    return 0


def _run_logged(root: Path, cell_id: str, attempt: int, stop: StopFlag, events: TextIO) -> int:
    with _logged_to(StudyPaths(root).cell(cell_id).log, attempt):
        code = _run_with_heartbeat(root, cell_id, attempt, stop, _tell(events))
    _emit(events, event="ended", cell=cell_id, attempt=attempt, exit_code=code)
    return code


def _run_with_heartbeat(root: Path, cell_id: str, attempt: int, stop: Callable[[], bool], progress: Progress) -> int:
    """Run a cell, showing other machines that it lives, and stop it when a later attempt owns it."""
    over, lost = threading.Event(), threading.Event()

    def keep_beating() -> None:
        while not over.wait(BEAT_INTERVAL_S):
            try:
                beat(StudyPaths(root).cell(cell_id), attempt)
            except LeaseLost:
                lost.set()
            except NullarmError as error:
                _say(f"heartbeat: {error}")

    thread = threading.Thread(target=keep_beating, daemon=True)
    thread.start()
    try:
        return run_cell(root, cell_id, attempt, lambda: stop() or lost.is_set(), progress)
    finally:
        over.set()
        thread.join()


def _read_jobs() -> queue.Queue[dict[str, Any] | None]:
    """Standard input as a queue. When it closes while a cell runs, the coordinator is gone: leave at once."""
    jobs: queue.Queue[dict[str, Any] | None] = queue.Queue()

    def read() -> None:
        for line in sys.stdin:
            jobs.put(json.loads(line) or None)
        os._exit(Preempted.exit_code)

    threading.Thread(target=read, daemon=True).start()
    return jobs


@contextlib.contextmanager
def _events() -> Iterator[TextIO]:
    """Standard output, for events alone: from here on, whatever prints to it reaches standard error instead."""
    with os.fdopen(os.dup(1), "w") as events:
        os.dup2(2, 1)
        yield events


def _tell(events: TextIO) -> Progress:
    def progress(done: int, total: int, note: str) -> None:
        _emit(events, event="progress", done=done, total=total, note=note)

    return progress


def _emit(events: TextIO, **event: object) -> None:
    with contextlib.suppress(BrokenPipeError):
        events.write(json.dumps(event) + "\n")
        events.flush()


@contextlib.contextmanager
def _logged_to(log: Path, attempt: int) -> Iterator[None]:
    """Send everything the process prints, from any library, to the cell's log."""
    saved = os.dup(1), os.dup(2)
    with open(log, "ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    _say(f"── attempt {attempt} · {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC")
    try:
        yield
    finally:
        for stream, old, new in zip((sys.stdout, sys.stderr), saved, (1, 2), strict=True):
            with contextlib.suppress(OSError):
                stream.flush()
            os.dup2(old, new)
            os.close(old)


def main(arguments: list[str]) -> int:
    """Entry point of `python -m nullarm.worker`."""
    if arguments[:1] == ["--serve"] and len(arguments) == 2:
        return serve(Path(arguments[1]))
    if len(arguments) != 3:
        print("usage: python -m nullarm.worker STUDY_DIR CELL ATTEMPT | --serve STUDY_DIR", file=sys.stderr)
        return 2
    root, cell_id, attempt = Path(arguments[0]), arguments[1], int(arguments[2])
    with _events() as events, stop_on_signals() as stop:
        return _run_logged(root, cell_id, attempt, stop, events)


if __name__ == "__main__":
    # Not `sys.exit`: the thread that waits for standard input holds its lock, which Python would end fatally over.
    os._exit(main(sys.argv[1:]))
