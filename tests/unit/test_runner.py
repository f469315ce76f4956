"""The run loop: what is started, believed, retried, given up, and how it stops."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nullarm import runner as module
from nullarm.conduct import prepare, run
from nullarm.engines.base import Ended, Job, Progress
from nullarm.engines.inline import InlineEngine
from nullarm.errors import BudgetExceeded, Preempted, StorageError, UsageError
from nullarm.runner import Runner, RunState
from nullarm.store.cell import CellWriter, Failure, write_failure
from nullarm.store.lease import Leases, Owner, read_lease
from nullarm.store.record import Outcome
from nullarm.store.study_store import StudyStore
from nullarm.study.plan import Plan
from support.engines import ScriptedEngine
from support.rehearsals import finish, laid_down, study, writer_of


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_S", 0.01)


def states(store: StudyStore) -> list[str]:
    return [entry.state for entry in store.journal.entries()]


def committing(outcome: Outcome = "ok", reason: str | None = None) -> Callable[[Job], int]:
    """A script under which every cell is finished at once."""

    def script(job: Job) -> int:
        writer = CellWriter(StudyStore.open(job.root).paths.cell(job.cell_id), job.attempt)
        writer.commit({"score": 1.0}, outcome=outcome, reason=reason)
        return 0

    return script


def test_every_cell_runs_once_after_what_it_needs(tmp_path: Path) -> None:
    store = laid_down(tmp_path / "run")
    engine = ScriptedEngine(committing(), at_once=3)
    result = run(store, engine)
    order = [job.cell_id for job in engine.submitted]
    assert sorted(order) == sorted(store.plan.by_id)
    for cell in store.plan:
        assert all(order.index(need) < order.index(cell.id) for need in cell.needs.values())
    assert (len(result.done), result.failed, result.blocked) == (6, {}, {})
    assert states(store) == ["done"] * 6
    assert engine.closed


def test_finished_cells_are_not_run_again(tmp_path: Path) -> None:
    store = laid_down(tmp_path / "run")
    for cell in store.plan:
        finish(store, cell)
    engine = ScriptedEngine(committing())
    assert len(run(store, engine).done) == 6
    assert engine.submitted == []


def test_the_analysis_is_declared_before_the_first_cell(tmp_path: Path) -> None:
    store = laid_down(tmp_path / "run")
    seen: list[object] = []

    def script(job: Job) -> int:
        seen.append(store.lock.declared_analysis)
        return committing()(job)

    run(store, ScriptedEngine(script))
    assert seen[0] == store.lock.study.analysis


def test_every_cell_is_released_finished_or_not(tmp_path: Path) -> None:
    store = laid_down(tmp_path / "run", {"resources.attempts": 1})
    bad = store.plan.cells[1].id
    run(store, ScriptedEngine(lambda job: 3 if job.cell_id == bad else committing()(job)))
    leases = [read_lease(store.paths.cell(cell.id)) for cell in store.plan]
    assert [lease.released for lease in leases if lease] == [True] * 6


def test_an_engine_that_says_it_went_well_is_not_believed(tmp_path: Path) -> None:
    store = laid_down(tmp_path / "run", {"seeds": [0]})
    engine = ScriptedEngine(lambda job: 0)
    result = run(store, engine)
    prepare, *others = store.plan.cells
    assert result.failed == {prepare.id: "WorkerDied: the worker ended with code 0 and no record, 3 times"}
    assert result.blocked == {cell.id: "seed 0 · prepare failed" for cell in others}
    assert [job.attempt for job in engine.submitted] == [1, 2, 3]
    assert states(store) == ["failed", "blocked", "blocked"]


def test_a_cell_that_is_preempted_is_queued_again_however_often(tmp_path: Path) -> None:
    store = laid_down(tmp_path / "run", {"seeds": [0], "resources.attempts": 1})
    result = run(store, ScriptedEngine(lambda job: 75 if job.attempt < 7 else committing()(job)))
    assert result.failed == {}
    assert {finished.record.attempt for cell in store.plan if (finished := store.finished(cell.id))} == {7}


def test_an_error_of_the_cell_itself_is_not_tried_again(tmp_path: Path) -> None:
    store = laid_down(tmp_path / "run")
    bad = store.plan.cells[1]

    def script(job: Job) -> int:
        if job.cell_id != bad.id:
            return committing()(job)
        write_failure(store.paths.cell(bad.id), Failure(job.attempt, "ModelError", "no model", 10))
        return 10

    engine = ScriptedEngine(script)
    result = run(store, engine)
    assert result.failed == {bad.id: "ModelError: no model"}
    assert len(result.done) == 5
    assert [job.cell_id for job in engine.submitted].count(bad.id) == 1
    assert len(run(store, ScriptedEngine(committing())).done) == 6


def test_news_of_an_attempt_that_is_over_changes_nothing(tmp_path: Path) -> None:
    store = laid_down(tmp_path / "run", {"seeds": [0]})
    engine = ScriptedEngine(committing())
    stale = Job(store.paths.root, store.plan.cells[0].id, 99)
    engine.events = [Ended(stale, 1), Progress(stale, 1, 2, "x"), Ended(Job(store.paths.root, "0123", 1), 1)]
    assert len(run(store, engine).done) == 3


def test_a_finding_stops_the_study(tmp_path: Path) -> None:
    store = laid_down(tmp_path / "run")
    first = store.plan.cells[0]

    def script(job: Job) -> int:
        return committing("undertrained", "accuracy 0.1")(job) if job.cell_id == first.id else committing()(job)

    for _ in range(2):  # and stops it again when it is resumed
        result = run(store, ScriptedEngine(script))
        assert result.stopped_by is not None
        assert result.stopped_by.record.cell_id == first.id
        assert set(result.blocked.values()) == {"seed 0 · prepare: accuracy 0.1", "stopped: accuracy 0.1"}
        assert states(store) == ["done", *["blocked"] * 5]


def test_a_finding_costs_only_its_seed_where_seeds_may_be_dropped(tmp_path: Path) -> None:
    store = laid_down(tmp_path / "run", {"analysis.incomplete": "drop_seed"})
    first = store.plan.cells[0]

    def script(job: Job) -> int:
        return committing("invalid", "no shuffle")(job) if job.cell_id == first.id else committing()(job)

    result = run(store, ScriptedEngine(script))
    assert result.stopped_by is None
    assert (len(result.done), len(result.blocked)) == (4, 2)


def test_a_blocked_cell_is_pending_again_at_the_next_run(tmp_path: Path) -> None:
    store = laid_down(tmp_path / "run", {"seeds": [0], "resources.attempts": 1})
    run(store, ScriptedEngine(lambda job: 0))
    assert states(store) == ["failed", "blocked", "blocked"]
    with pytest.raises(Preempted):
        run(store, ScriptedEngine(lambda job: None), should_stop=lambda: True)
    assert states(store) == ["failed", "pending", "pending"]


def stopping_after(polls: int) -> Callable[[], bool]:
    left = [polls]

    def should_stop() -> bool:
        left[0] -= 1
        return left[0] < 0

    return should_stop


def test_a_stop_reaches_running_cells_at_a_safe_point(tmp_path: Path) -> None:
    store = laid_down(tmp_path / "run")
    engine = ScriptedEngine(lambda job: None, at_once=2)
    with pytest.raises(Preempted, match=f"asked to stop; next: nullarm resume {tmp_path}/run"):
        run(store, engine, should_stop=stopping_after(2))
    assert [at_once for _, at_once in engine.cancelled] == [False, False]
    assert states(store) == ["pending"] * 6
    assert len(run(store, ScriptedEngine(committing())).done) == 6


def test_ctrl_c_stops_cells_at_a_safe_point_and_counts_as_no_failure(tmp_path: Path) -> None:
    store = laid_down(tmp_path / "run", {"resources.attempts": 1})
    engine = ScriptedEngine(lambda job: None, at_once=2)
    told: list[RunState] = []

    def observer(state: RunState) -> None:
        told.append(state)
        if len(told) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(store, engine, observer)
    assert [at_once for _, at_once in engine.cancelled] == [False, False]
    assert engine.closed
    assert told[-1].stopping
    assert states(store) == ["pending"] * 6
    assert len(run(store, ScriptedEngine(committing())).done) == 6


def test_a_second_ctrl_c_kills(tmp_path: Path) -> None:
    store = laid_down(tmp_path / "run")
    engine = ScriptedEngine(lambda job: None, at_once=2, deaf=True)
    told: list[RunState] = []

    def observer(state: RunState) -> None:
        told.append(state)
        if len(told) in (2, 4):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(store, engine, observer)
    assert sorted(at_once for _, at_once in engine.cancelled) == [False, False, True, True]
    assert states(store) == ["pending"] * 6


def test_ctrl_c_inside_an_inline_cell_ends_the_run_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = laid_down(tmp_path / "run")
    cell = store.plan.cells[0]

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("nullarm.protocols.rehearsal.Rehearsal.run_cell", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(store, InlineEngine())
    lease = read_lease(store.paths.cell(cell.id))
    assert lease is not None
    assert lease.released
    assert len(run(store, InlineEngine()).done) == 6


def test_cells_that_do_not_stop_in_time_are_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STOP_GRACE_S", 0.05)
    store = laid_down(tmp_path / "run")
    engine = ScriptedEngine(lambda job: None, deaf=True)
    with pytest.raises(Preempted):
        run(store, engine, should_stop=stopping_after(1))
    assert [at_once for _, at_once in engine.cancelled] == [False, True]


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        (
            {"max_cost": 0.01, "price_per_hour": 1e9},
            r"budget\.max_cost is reached; .* valid: up to \$0\.01",
        ),
        ({"max_runtime_h": 1e-9}, r"budget\.max_runtime_h is reached; .*raise budget\.max_runtime_h and run again"),
    ],
)
def test_a_limit_stops_the_run_and_can_be_raised(tmp_path: Path, budget: dict[str, float], words: str) -> None:
    store = laid_down(tmp_path / "run", {"budget": budget})
    engine = ScriptedEngine(lambda job: None)
    with pytest.raises(BudgetExceeded, match=words):
        run(store, engine)
    assert "running" not in states(store)
    with laid_down(tmp_path / "run") as unlimited:
        assert len(run(unlimited, ScriptedEngine(committing())).done) == 6


def test_money_spent_by_earlier_runs_counts(tmp_path: Path) -> None:
    store = laid_down(tmp_path / "run", {"budget": {"max_cost": 5.0, "price_per_hour": 1.0}})
    store.journal.spend(1.0, 6 * 3600.0, 1.0)
    engine = ScriptedEngine(committing())
    with pytest.raises(BudgetExceeded, match=r"got '\$6\.00'"):
        run(store, engine)
    assert engine.submitted == []


def test_two_coordinators_share_a_study_without_doing_anything_twice(tmp_path: Path) -> None:
    store = laid_down(tmp_path / "run", {"seeds": [0]})
    first = store.plan.cells[0]
    elsewhere = Leases(Owner("elsewhere", "boot", 1, 1.0))
    store.claim(first, elsewhere)
    looks = [0]

    def observer(state: RunState) -> None:
        looks[0] += 1
        if looks[0] == 3:  # meanwhile the other coordinator finishes it
            CellWriter(store.paths.cell(first.id), 1).commit({"score": 2.0})

    engine = ScriptedEngine(committing())
    result = run(store, engine, observer)
    assert first.id not in {job.cell_id for job in engine.submitted}
    assert len(result.done) == 3


def test_a_damaged_lease_fails_its_cell_alone(tmp_path: Path) -> None:
    store = laid_down(tmp_path / "run")
    bad = store.plan.cells[1]
    writer_of(store, bad)
    store.paths.cell(bad.id).lease.write_bytes(b"\0")
    result = run(store, ScriptedEngine(committing()))
    assert "is damaged; next: make sure that no run is at work here" in result.failed[bad.id]
    assert len(result.done) == 5


def test_a_disk_that_fills_up_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = laid_down(tmp_path / "run")
    engine = ScriptedEngine(committing())

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", refuse)
        with pytest.raises(StorageError, match="the disk is full; next: free space on"):
            run(store, engine)
    assert engine.closed
    assert len(run(store, ScriptedEngine(committing())).done) == 6


def test_the_observer_is_told_what_people_ask(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"parameters.chunk_seconds": 1.0, "budget.price_per_hour": 3600.0}
    store = laid_down(tmp_path / "run", changes)
    told: list[RunState] = []

    def script(job: Job) -> int | None:
        if told and not told[-1].running:
            engine.events.append(Progress(job, 1, 2, "chunks"))
        return committing()(job) if len(told) % 2 else None

    engine = ScriptedEngine(script)
    Runner(store, engine, told.append).run()
    assert [state.done for state in told] == sorted(state.done for state in told)
    assert (told[-1].total, told[-1].done, told[-1].failed, told[-1].blocked) == (6, 6, 0, 0)
    assert told[-1].cost > 0
    assert ("seed 0 · prepare", "") in told[0].running
    assert told[0].eta_s is None
    measured = next(state for state in told if state.done == 3)
    assert measured.eta_s is not None
    assert measured.eta_s > 0


def test_ten_thousand_cells_behind_one_that_fails_are_blocked_in_no_time(tmp_path: Path) -> None:
    """Each is looked at once: with a list instead of a set this would be 10⁸ comparisons."""
    cells = {f"{i}": [f"{i - 1}"] if i else [] for i in range(10_000)}

    class FakeCell:
        def __init__(self, name: str) -> None:
            self.id = name
            self.needs = dict.fromkeys(cells[name], cells[name][0]) if cells[name] else {}

    graph = module._Graph([FakeCell(name) for name in cells])  # type: ignore[misc]
    assert graph.give_up("0") == [f"{i}" for i in range(1, 10_000)]


def test_working_files_that_a_kill_left_beside_a_record_are_removed(tmp_path: Path) -> None:
    store = laid_down(tmp_path / "run")
    for cell in store.plan:
        finish(store, cell)
    left = store.paths.cell(store.plan.cells[0].id).scratch / "checkpoints" / "optimizer"
    left.mkdir(parents=True)
    run(store, ScriptedEngine(committing()))
    assert not left.parent.parent.exists()


def test_entries_run_alone_with_what_they_need_and_are_told_one_by_one(tmp_path: Path) -> None:
    store = laid_down(tmp_path / "run")
    told: list[str] = []
    chosen = store.plan.closure(cell.id for cell in store.plan if cell.arm == "sham")
    engine = ScriptedEngine(committing())
    result = Runner(store, engine, only=chosen, on_finished=lambda cell: told.append(cell.id)).run()
    assert {store.plan.by_id[i].arm for i in told} == {"sham", None}
    assert sorted(told) == sorted(result.done) == sorted(chosen)
    assert states(store).count("pending") == 2
    assert sorted(run(store, ScriptedEngine(committing())).done) == sorted(store.plan.by_id)


def test_an_entry_that_is_no_arm_is_named(tmp_path: Path) -> None:
    store = laid_down(tmp_path / "run")
    with pytest.raises(UsageError, match=r"the study has no arm 'shan'.*sham.*valid: sham, treated"):
        run(store, ScriptedEngine(committing()), entries=["shan"])


def test_a_cell_that_needs_the_machine_to_itself_runs_alone(tmp_path: Path) -> None:
    prepared = prepare(study())
    cells = tuple(replace(cell, exclusive=cell.arm == "treated") for cell in prepared.plan)
    store = StudyStore.create(tmp_path / "run", prepared.study, Plan(cells))
    beside: dict[str, int] = {}

    def script(job: Job) -> int:
        beside[job.cell_id] = max(beside.get(job.cell_id, 0), len(engine.running) - 1)
        return committing()(job)

    engine = ScriptedEngine(script, at_once=3)
    assert len(run(store, engine).done) == 6
    assert [beside[cell.id] for cell in cells if cell.exclusive] == [0, 0]
    assert any(beside[cell.id] for cell in cells if not cell.exclusive)
