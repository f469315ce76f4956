"""Runs a plan on an engine: pending = plan − store; submit, watch, believe only records, stop at the budget."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass, field

from nullarm.engines.base import Ended, Engine, Job, Progress
from nullarm.errors import BudgetExceeded, IntegrityError, LeaseLost, NullarmError, Preempted
from nullarm.store.cell import Failure, discard_scratch, read_failure, write_failure
from nullarm.store.journal import Change
from nullarm.store.lease import Lease, Leases
from nullarm.store.record import FinishedCell
from nullarm.store.study_store import StudyStore
from nullarm.study.plan import Cell

POLL_S = 0.5
STOP_GRACE_S = 120.0
"""How long running cells get to reach a safe point."""


@dataclass(frozen=True)
class RunState:
    """Where a run is, for whoever watches."""

    total: int
    done: int
    failed: int
    blocked: int
    running: tuple[tuple[str, str], ...]
    """Label and progress of each running cell."""
    eta_s: float | None
    cost: float
    """US dollars of all runs of this study so far."""
    stopping: bool = False
    """Running cells have been asked to stop at their next safe point."""


@dataclass
class RunResult:
    """How a run ended."""

    done: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    """Reason by cell id."""
    blocked: dict[str, str] = field(default_factory=dict)
    stopped_by: FinishedCell | None = None
    """The cell whose finding (a failed gate, say) ended the study."""


class Runner:
    """One run of a study's open cells on an engine.

    Args:
        store: The study directory.
        engine: Where cells run.
        observer: Called with the state about twice a second.
        should_stop: Looked at between polls; running cells are then stopped at a safe point.
        only: Ids of the cells to run, everything that they need among them; all when None.
        on_finished: Told of every cell that this run has seen finished.
    """

    def __init__(
        self,
        store: StudyStore,
        engine: Engine,
        observer: Callable[[RunState], None] = lambda state: None,
        should_stop: Callable[[], bool] = lambda: False,
        only: Collection[str] | None = None,
        on_finished: Callable[[Cell], None] = lambda cell: None,
    ) -> None:
        self._store = store
        self._study = store.lock.study
        self._engine = engine
        self._observer = observer
        self._should_stop = should_stop
        self._leases = Leases()
        self._running: dict[str, tuple[Cell, Lease]] = {}
        self._notes: dict[str, str] = {}
        self._tries: dict[str, int] = {}
        self._stopping = False
        self._result = RunResult()
        self._on_finished = on_finished
        self._cells = [cell for cell in store.plan if only is None or cell.id in only]
        self._graph = _Graph(self._cells)
        self._started = time.time()
        self._monotonic = time.monotonic()

    def run(self) -> RunResult:
        """Run until every cell is finished, failed or blocked.

        Raises:
            BudgetExceeded: The cost or runtime limit is reached; running cells were stopped at a safe point.
            Preempted: `should_stop` asked for it, likewise.
        """
        self._store.declare_analysis()
        self._take_stock()
        try:
            while self._graph.open:
                self._check_limits()
                self._submit_ready()
                self._watch(POLL_S)
                if not self._running and not self._graph.ready:
                    break
        finally:
            self._stop_running()
            self._note_spend()
        return self._result

    def _take_stock(self) -> None:
        for cell in self._cells:
            if finished := self._store.finished(cell.id):
                discard_scratch(finished.paths)
                self._accept(cell, finished)
        self._graph.finished_here.clear()
        blocked = [e.id for e in self._store.journal.entries() if e.state == "blocked" and e.id in self._graph.open]
        self._store.journal.update([Change(cell_id, "pending") for cell_id in blocked])

    def _submit_ready(self) -> None:
        held: dict[str, Cell] = {}
        while self._engine.room() > 0 and (cell := self._next()) and self._result.stopped_by is None:
            del self._graph.ready[cell.id]
            if finished := self._store.finished(cell.id):  # another coordinator was faster
                self._accept(cell, finished)
            elif not self._start(cell):
                held[cell.id] = cell
        self._graph.ready.update(held)
        if held and not self._running:
            time.sleep(POLL_S)  # another coordinator has them: look again later
        if self._result.stopped_by is not None and not self._running:
            self._block(list(self._graph.open), f"stopped: {self._result.stopped_by.record.reason}")

    def _next(self) -> Cell | None:
        """The next cell that may start now; one that must have the machine to itself waits for all the others."""
        if any(running.exclusive for running, _ in self._running.values()):
            return None
        ready = self._graph.ready.values()
        alone = None if self._running else next(iter(ready), None)
        return next((cell for cell in ready if not cell.exclusive), alone)

    def _start(self, cell: Cell) -> bool:
        """Claim a cell and submit it; False while another coordinator holds it."""
        try:
            lease = self._store.claim(cell, self._leases)
        except IntegrityError as error:
            self._fail(cell, str(error))
            return True
        if lease is None:
            return False
        resources = self._study.resources
        self._engine.submit(Job(self._store.paths.root, cell.id, lease.attempt, resources.cpus, resources.gpus))
        self._running[cell.id] = (cell, lease)
        return True

    def _watch(self, timeout_s: float) -> None:
        for event in self._engine.poll(timeout_s):
            if (
                event.job.cell_id not in self._running
                or self._running[event.job.cell_id][1].attempt != event.job.attempt
            ):
                continue  # news of an attempt that is over
            if isinstance(event, Progress):
                self._notes[event.job.cell_id] = f"{event.done}/{event.total} {event.note}"
            else:
                self._end(event)
        self._note_spend()
        self._observer(self._state())

    def _end(self, event: Ended) -> None:
        cell, lease = self._running.pop(event.job.cell_id)
        self._notes.pop(cell.id, None)
        self._engine.fetch(self._store.paths.root, cell.id)
        paths = self._store.paths.cell(cell.id)
        failure = None if self._store.finished(cell.id) else self._failure(cell, lease, event)
        self._leases.release(paths)
        if finished := self._store.observe(cell.id):
            self._accept(cell, finished)
            self._on_finished(cell)
        elif failure:
            self._fail(cell, str(failure))
        else:
            self._graph.ready[cell.id] = cell

    def _failure(self, cell: Cell, lease: Lease, event: Ended) -> Failure | None:
        """Why an unfinished cell is not tried again; None when it will be.

        An error of the cell's own is final. A worker that vanished, or claimed success without a record, is replaced.
        """
        paths = self._store.paths.cell(cell.id)
        noted = read_failure(paths)
        if noted and noted.attempt == lease.attempt:
            return noted
        if event.exit_code == Preempted.exit_code or self._stopping:
            return None
        self._tries[cell.id] = self._tries.get(cell.id, 0) + 1
        if self._tries[cell.id] < self._study.resources.attempts:
            return None
        how = "was killed" if event.exit_code is None else f"ended with code {event.exit_code} and no record"
        message = f"the worker {how}, {self._tries[cell.id]} times"
        failure = Failure(lease.attempt, "WorkerDied", message, event.exit_code or 1)
        with suppress(LeaseLost):  # another machine thought this one dead: the cell is its own now
            write_failure(paths, failure)
        return failure

    def _accept(self, cell: Cell, finished: FinishedCell) -> None:
        self._result.done.append(cell.id)
        if finished.record.outcome == "ok":
            self._graph.finish(cell.id)
            return
        reason = finished.record.reason or finished.record.outcome
        self._block(self._graph.give_up(cell.id), f"{cell.label}: {reason}")
        if self._study.analysis.incomplete == "invalid":
            self._result.stopped_by = finished

    def _fail(self, cell: Cell, reason: str) -> None:
        self._result.failed[cell.id] = reason
        self._block(self._graph.give_up(cell.id), f"{cell.label} failed")

    def _block(self, cell_ids: Iterable[str], reason: str) -> None:
        blocked = list(cell_ids)
        self._graph.drop(blocked)
        self._result.blocked.update(dict.fromkeys(blocked, reason))
        self._store.journal.update([Change(i, "blocked", message=reason) for i in blocked])

    def _check_limits(self) -> None:
        budget = self._study.budget
        _, cost = self._store.journal.spent()
        hours = (time.monotonic() - self._monotonic) / 3600
        if self._should_stop():
            raise Preempted("asked to stop", next_command=f"nullarm resume {self._store.paths.root}")
        if budget.max_cost is not None and cost >= budget.max_cost:
            raise _over("max_cost", f"${cost:.2f}", f"${budget.max_cost:.2f}", self._store)
        if budget.max_runtime_h is not None and hours >= budget.max_runtime_h:
            raise _over("max_runtime_h", f"{hours:.2f} h", f"{budget.max_runtime_h:.2f} h", self._store)

    def _stop_running(self) -> None:
        """Ask running cells to stop at a safe point, wait, then kill; with nothing running, nothing happens."""
        self._stopping = True
        for cell_id in self._running:
            self._engine.cancel(cell_id)
        deadline = time.monotonic() + STOP_GRACE_S
        try:
            while self._running and time.monotonic() < deadline:
                self._watch(POLL_S)
        finally:
            for cell_id in self._running:
                self._engine.cancel(cell_id, at_once=True)
            self._running.clear()
            self._leases.release_all()
            self._store.reconcile()
            self._store.journal.update(
                [Change(i, "blocked", message=reason) for i, reason in self._result.blocked.items()]
            )

    def _note_spend(self) -> None:
        self._store.journal.spend(self._started, time.monotonic() - self._monotonic, self._study.budget.price_per_hour)

    def _state(self) -> RunState:
        running = tuple((cell.label, self._notes.get(i, "")) for i, (cell, _) in self._running.items())
        return RunState(
            total=len(self._graph.cells),
            done=len(self._result.done),
            failed=len(self._result.failed),
            blocked=len(self._result.blocked),
            running=running,
            eta_s=self._eta(),
            cost=self._store.journal.spent()[1],
            stopping=self._stopping,
        )

    def _eta(self) -> float | None:
        """Time left: what was expected of the open cells, scaled by how this run has kept to what was expected."""
        cells = self._graph.cells
        expected = sum(cells[i].estimate.seconds for i in self._graph.finished_here)
        left = sum(cells[i].estimate.seconds for i in self._graph.open)
        if not expected:
            return None
        return (time.monotonic() - self._monotonic) * left / expected


class _Graph:
    """Which cells are open, which of them are ready, and who waits for whom."""

    def __init__(self, cells: Iterable[Cell]) -> None:
        self.cells = {cell.id: cell for cell in cells}
        self.open = set(self.cells)
        self.finished_here: set[str] = set()
        self._waits_for = {i: set(cell.needs.values()) for i, cell in self.cells.items()}
        self._waiting: dict[str, list[str]] = {i: [] for i in self.cells}
        for cell_id, needs in self._waits_for.items():
            for need in needs:
                self._waiting[need].append(cell_id)
        self.ready = {i: cell for i, cell in self.cells.items() if not self._waits_for[i]}

    def finish(self, cell_id: str) -> None:
        """Close a cell and free what waited for it."""
        self._close(cell_id)
        self.finished_here.add(cell_id)
        for waiting in self._waiting[cell_id]:
            self._waits_for[waiting].discard(cell_id)
            if not self._waits_for[waiting] and waiting in self.open:
                self.ready[waiting] = self.cells[waiting]

    def give_up(self, cell_id: str) -> list[str]:
        """Close a cell and return every open cell that waits for it, directly or not."""
        self._close(cell_id)
        found: dict[str, None] = {}
        frontier = [cell_id]
        while frontier:
            new = [w for w in self._waiting[frontier.pop()] if w in self.open and w not in found]
            found |= dict.fromkeys(new)
            frontier += new
        return list(found)

    def drop(self, cell_ids: Iterable[str]) -> None:
        """Close cells that will not run."""
        for cell_id in cell_ids:
            self._close(cell_id)

    def _close(self, cell_id: str) -> None:
        self.open.discard(cell_id)
        self.ready.pop(cell_id, None)


def _over(limit: str, value: str, allowed: str, store: StudyStore) -> NullarmError:
    return BudgetExceeded(
        f"the study's budget.{limit} is reached; running cells were stopped at a safe point",
        value=value,
        valid=f"up to {allowed}",
        next_command=f"raise budget.{limit} and run again: nullarm run … --dir {store.paths.root}",
    )
