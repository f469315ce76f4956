"""What every engine must do. A new engine is one more line in `ENGINES`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nullarm.conduct import conclude, run
from nullarm.engines.base import Ended, Engine, Event, Job, Progress
from nullarm.engines.fake import FakeEngine, Faults
from nullarm.engines.inline import InlineEngine
from nullarm.engines.local import LocalEngine
from nullarm.errors import Preempted
from nullarm.store.cell import read_failure
from nullarm.store.lease import Leases
from nullarm.store.study_store import StudyStore
from nullarm.study.plan import Cell
from support.processes import PATIENCE_S, eventually, workers_of
from support.rehearsals import laid_down

TESTS = Path(__file__).parents[1]


@dataclass(frozen=True)
class Contender:
    """An engine under test, and what it can do that not every engine can."""

    make: Callable[[], Engine]
    processes: bool = True
    """Cells run in processes of their own, so they can be killed, die, or hang without hurting anybody."""
    at_once: int = 2
    """Cells at a time."""


ENGINES = {
    "inline": Contender(InlineEngine, processes=False, at_once=1),
    "local": Contender(lambda: LocalEngine(at_once=2)),
    "fake": Contender(lambda: FakeEngine(Faults())),
    "fake, all events twice": Contender(lambda: FakeEngine(Faults(repeat=1.0))),
}
FAULTY = {
    "kills": Faults(seed=1, kill=0.5, kill_within_s=1.0),
    "lies": Faults(seed=2, lie=0.4),
    "vanishes": Faults(seed=3, vanish=0.4),
    "all": Faults(seed=4, kill=0.15, lie=0.15, vanish=0.15, repeat=0.3, kill_within_s=1.0),
}
SEPARATE = {name: contender for name, contender in ENGINES.items() if contender.processes}

every_engine = pytest.mark.parametrize("contender", ENGINES.values(), ids=ENGINES)
engines_with_processes = pytest.mark.parametrize("contender", SEPARATE.values(), ids=SEPARATE)

SLOW = {"parameters.chunks": 40, "parameters.items": 40, "parameters.chunk_seconds": 0.05}
"""Cells that are not over before they are interrupted."""


@pytest.fixture(autouse=True)
def _workers_find_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(TESTS))


@pytest.fixture
def engine(contender: Contender, tmp_path: Path) -> Iterator[Engine]:
    made = contender.make()
    yield made
    made.close()
    assert workers_of(tmp_path) == []


def misbehaving(root: Path, arm: str, changes: dict[str, Any] | None = None) -> StudyStore:
    """A study of one seed whose treated arm misbehaves as its name says."""
    contrast = {"name": "effect", "treatment": arm, "control": "sham", "primary": True}
    sham = {"role": "control", "null": "nothing changes"}
    return laid_down(
        root,
        {
            "protocol": "support.misbehaving:Misbehaving", "seeds": [0], "factors": {"arm": {arm: {}, "sham": sham}},
            "analysis.contrasts": [contrast], "resources.attempts": 2, **(changes or {}),
        },
    )  # fmt: skip


def prepared(store: StudyStore) -> Cell:
    """Finish the first seed's preparation without any engine, and return a cell that needs it."""
    first, *rest = store.plan.cells
    run_inline(store, first)
    return next(cell for cell in rest if first.id in cell.needs.values())


def run_inline(store: StudyStore, cell: Cell) -> None:
    engine = InlineEngine()
    engine.submit(claimed(store, cell))
    assert isinstance(engine.poll(0.0)[-1], Ended)
    assert store.finished(cell.id) is not None


def claimed(store: StudyStore, cell: Cell) -> Job:
    """The cell's next attempt as a job."""
    leases = Leases()
    lease = store.claim(cell, leases)
    assert lease is not None
    leases.release(store.paths.cell(cell.id))
    return Job(store.paths.root, cell.id, lease.attempt)


def listen(engine: Engine, kind: type[Event], job: Job) -> list[Event]:
    """Everything that is heard of a job up to its first event of a kind."""
    heard: list[Event] = []

    def listen_once() -> bool:
        heard.extend(event for event in engine.poll(0.5) if event.job == job)
        return any(isinstance(event, kind) for event in heard)

    eventually(listen_once, f"{kind.__name__} of {job}")
    return heard


def ended(engine: Engine, job: Job) -> int | None:
    """Wait for the job's end and return its exit code."""
    (*_, last) = (event for event in listen(engine, Ended, job) if isinstance(event, Ended))
    return last.exit_code


def chunks_made(store: StudyStore, engine: Engine, cell: Cell) -> list[str]:
    lines = engine.logs(store.paths.root, cell.id).splitlines()
    return [line.removeprefix("chunk ") for line in lines if line.startswith("chunk ")]


@every_engine
def test_a_cell_runs_to_its_record(engine: Engine, tmp_path: Path) -> None:
    store = laid_down(tmp_path / "run")
    cell = store.plan.cells[0]
    assert engine.room() > 0
    job = claimed(store, cell)
    engine.submit(job)
    assert ended(engine, job) == 0
    engine.fetch(store.paths.root, cell.id)
    done = store.finished(cell.id)
    assert done is not None
    assert (done.record.attempt, done.record.outcome) == (1, "ok")
    assert done.record.provenance["python"]
    assert engine.room() > 0


@every_engine
def test_progress_is_told_on_the_way(engine: Engine, tmp_path: Path) -> None:
    store = laid_down(tmp_path / "run")
    job = claimed(store, prepared(store))
    engine.submit(job)
    told = [(e.done, e.total, e.note) for e in listen(engine, Ended, job) if isinstance(e, Progress)]
    assert sorted(set(told)) == [(1, 2, "chunks"), (2, 2, "chunks")]
    assert told == sorted(told)


@every_engine
def test_submitting_twice_is_submitting_once(engine: Engine, tmp_path: Path) -> None:
    store = laid_down(tmp_path / "run")
    cell = prepared(store)
    job = claimed(store, cell)
    engine.submit(job)
    engine.submit(job)
    assert ended(engine, job) == 0
    engine.submit(job)
    assert engine.poll(0.2) == []
    assert engine.logs(store.paths.root, cell.id).count("chunk items-0000") == 1


@every_engine
def test_the_next_attempt_is_another_job(engine: Engine, tmp_path: Path) -> None:
    store = misbehaving(tmp_path / "run", "refuses")
    cell = prepared(store)
    for attempt in (1, 2):
        job = claimed(store, cell)
        assert job.attempt == attempt
        engine.submit(job)
        assert ended(engine, job) == 10
        failure = read_failure(store.paths.cell(cell.id))
        assert failure is not None
        assert (failure.attempt, failure.kind) == (attempt, "ModelError")
        assert failure.message == "there is no such model; got 'nowhere'"


@every_engine
def test_after_a_failing_cell_the_next_one_runs(engine: Engine, tmp_path: Path) -> None:
    store = laid_down(tmp_path / "run", {"parameters.fail": ["treated"]})
    cell = prepared(store)
    job = claimed(store, cell)
    engine.submit(job)
    assert ended(engine, job) == 1
    log = engine.logs(store.paths.root, cell.id)
    assert "Traceback (most recent call last)" in log
    assert "RuntimeError: arm treated was asked to fail" in log
    after = claimed(store, store.plan.cells[2])
    engine.submit(after)
    assert ended(engine, after) == 0


@every_engine
def test_cells_with_the_same_id_in_two_directories_are_two_jobs(engine: Engine, tmp_path: Path) -> None:
    for name in ("one", "other"):
        store = laid_down(tmp_path / name)
        job = claimed(store, store.plan.cells[0])
        engine.submit(job)
        assert ended(engine, job) == 0
        assert store.finished(job.cell_id) is not None


@every_engine
def test_a_cell_stops_at_a_safe_point_and_goes_on_there(contender: Contender, engine: Engine, tmp_path: Path) -> None:
    store = laid_down(tmp_path / "run", SLOW)
    cell = prepared(store)
    job = claimed(store, cell)
    engine.submit(job)
    if contender.processes:
        listen(engine, Progress, job)
    engine.cancel(cell.id)
    assert ended(engine, job) == Preempted.exit_code
    assert store.finished(cell.id) is None
    assert read_failure(store.paths.cell(cell.id)) is None
    made = chunks_made(store, engine, cell)
    assert len(made) < 40
    assert len(list(store.paths.cell(cell.id).chunks.iterdir())) == len(made)
    again = claimed(store, cell)
    engine.submit(again)
    assert ended(engine, again) == 0
    assert chunks_made(store, engine, cell) == [f"items-{i:04d}" for i in range(40)]


@engines_with_processes
def test_a_cell_is_killed_at_once(engine: Engine, tmp_path: Path) -> None:
    store = misbehaving(tmp_path / "run", "hangs")
    cell = prepared(store)
    job = claimed(store, cell)
    engine.submit(job)
    listen(engine, Progress, job)
    engine.cancel(cell.id, at_once=True)
    assert ended(engine, job) is None
    assert store.finished(cell.id) is None
    eventually(lambda: workers_of(tmp_path) == [], "the worker to be gone")
    other = claimed(store, store.plan.cells[2])
    engine.submit(other)
    assert ended(engine, other) == 0


@every_engine
def test_cancelling_what_does_not_run_is_no_error(engine: Engine, tmp_path: Path) -> None:
    store = laid_down(tmp_path / "run")
    job = claimed(store, store.plan.cells[0])
    engine.cancel(job.cell_id)
    engine.cancel("0123", at_once=True)
    engine.submit(job)
    assert ended(engine, job) == 0
    engine.cancel(job.cell_id, at_once=True)
    assert engine.poll(0.1) == []


@every_engine
def test_without_jobs_there_is_nothing_to_tell(engine: Engine, tmp_path: Path) -> None:
    assert engine.poll(0.01) == []
    assert engine.logs(tmp_path, "0123") == ""


@every_engine
def test_what_a_cell_prints_is_in_its_log(engine: Engine, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    store = misbehaving(tmp_path / "run", "chatters")
    cell = prepared(store)
    job = claimed(store, cell)
    capfd.readouterr()
    engine.submit(job)
    assert ended(engine, job) == 0
    log = engine.logs(store.paths.root, cell.id)
    assert "to standard output" in log
    assert "chunk items-0001" in log
    assert "to standard output" not in capfd.readouterr().out


@engines_with_processes
def test_output_of_children_and_standard_error_is_in_the_log_too(engine: Engine, tmp_path: Path) -> None:
    store = misbehaving(tmp_path / "run", "chatters")
    cell = prepared(store)
    job = claimed(store, cell)
    engine.submit(job)
    assert ended(engine, job) == 0
    log = engine.logs(store.paths.root, cell.id)
    assert "── attempt 1 · " in log
    assert "to standard error" in log
    assert "from a child process" in log


@engines_with_processes
@pytest.mark.parametrize(
    ("arm", "code", "words"),
    [("dies", None, "the worker was killed, 2 times"), ("vanishes", 0, "ended with code 0 and no record, 2 times")],
)
def test_an_end_without_a_record_is_a_failure_whatever_the_engine_says(
    contender: Contender, tmp_path: Path, arm: str, code: int | None, words: str
) -> None:
    store = misbehaving(tmp_path / "run", arm)
    engine = contender.make()
    job = claimed(store, prepared(store))
    engine.submit(job)
    assert ended(engine, job) == code
    result = run(store, engine)
    bad = next(cell for cell in store.plan if cell.arm == arm)
    assert list(result.failed) == [bad.id]
    assert words in result.failed[bad.id]
    assert len(result.done) == 2
    failure = read_failure(store.paths.cell(bad.id))
    assert failure is not None
    assert (failure.kind, failure.attempt) == ("WorkerDied", 3)


@engines_with_processes
def test_closing_ends_every_process_also_one_that_does_not_listen(contender: Contender, tmp_path: Path) -> None:
    store = misbehaving(tmp_path / "run", "hangs", {"parameters.chunks": 40, "parameters.chunk_seconds": 60.0})
    first = prepared(store)
    engine = contender.make()
    jobs = [claimed(store, first), claimed(store, store.plan.cells[2])]
    for job in jobs:
        engine.submit(job)
    listen(engine, Progress, jobs[0])
    assert engine.room() == 0
    assert len(workers_of(tmp_path)) == 2
    engine.close()
    assert workers_of(tmp_path) == []


@every_engine
def test_closing_without_work_is_no_error(contender: Contender) -> None:
    engine = contender.make()
    engine.close()
    engine.close()
    assert engine.poll(0) == []


@engines_with_processes
def test_cells_run_side_by_side(contender: Contender, engine: Engine, tmp_path: Path) -> None:
    store = laid_down(tmp_path / "run")
    jobs = [claimed(store, store.plan.cells[i]) for i in (0, 3)]
    assert [cell.stage for cell in (store.plan.cells[0], store.plan.cells[3])] == ["prepare", "prepare"]
    for job in jobs:
        engine.submit(job)
    assert engine.room() == contender.at_once - 2
    over: set[str] = set()

    def all_over() -> bool:
        over.update(event.job.cell_id for event in engine.poll(0.5) if isinstance(event, Ended))
        return len(over) == 2

    eventually(all_over, f"both cells within {PATIENCE_S} s")
    assert all(store.finished(job.cell_id) for job in jobs)


def tables_of(root: Path, engine: Engine) -> dict[str, bytes]:
    store = laid_down(root, {"resources.attempts": 20})
    result = run(store, engine)
    assert result.failed == result.blocked == {}
    assert sorted(result.done) == sorted(cell.id for cell in store.plan)
    conclude(store)
    return {path.name: path.read_bytes() for path in store.paths.tables.iterdir()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return tables_of(tmp_path_factory.mktemp("undisturbed") / "run", InlineEngine())


def test_every_fault_strikes(tmp_path: Path) -> None:
    plan = laid_down(tmp_path / "run").plan
    for name, faults in FAULTY.items():
        drawn = {faults.draw(Job(tmp_path, cell.id, 1))[0] for cell in plan}
        assert drawn - {None}, name
    assert {fault for faults in FAULTY.values() for c in plan if (fault := faults.draw(Job(tmp_path, c.id, 1))[0])} == {
        "kill", "lie", "vanish", "repeat",
    }  # fmt: skip


@pytest.mark.parametrize(
    "make",
    [*(c.make for c in SEPARATE.values()), *(lambda f=f: FakeEngine(f) for f in FAULTY.values())],
    ids=[*SEPARATE, *(f"fake that {name}" for name in FAULTY)],
)
def test_a_whole_study_has_the_same_tables_on_every_engine_whatever_goes_wrong(
    make: Callable[[], Engine], tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    assert tables_of(tmp_path / "run", make()) == undisturbed
    assert workers_of(tmp_path) == []
