"""How the local engine shares the machine out. What it does with cells is in the contract suite."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from nullarm.engines import local
from nullarm.engines.base import Ended, Job
from nullarm.engines.local import LocalEngine
from nullarm.errors import PreflightError
from nullarm.store.lease import Leases
from nullarm.store.study_store import StudyStore
from support.processes import eventually, workers_of
from support.rehearsals import laid_down


def shares(engine: LocalEngine) -> list[tuple[str, ...]]:
    return [slot.gpus for slot in engine._slots]


def claimed(store: StudyStore, index: int) -> Job:
    cell = store.plan.cells[index]
    lease = store.claim(cell, Leases())
    assert lease is not None
    return Job(store.paths.root, cell.id, lease.attempt)


@pytest.mark.parametrize(
    ("cpus", "per_cell", "at_once", "room"),
    [(8, 1, None, 8), (8, 3, None, 2), (2, 4, None, 1), (8, 1, 3, 3), (2, 1, 5, 5)],
)
def test_cpu_shares(monkeypatch: pytest.MonkeyPatch, cpus: int, per_cell: int, at_once: int | None, room: int) -> None:
    monkeypatch.setattr(local, "_cpus", lambda: cpus)
    assert LocalEngine(per_cell, 0, at_once).room() == room


@pytest.mark.parametrize(
    ("visible", "per_cell", "at_once", "expected"),
    [
        ("0,1,2,3", 1, None, [("0",), ("1",), ("2",), ("3",)]),
        ("4,5,6", 2, None, [("4", "5")]),
        ("GPU-a,GPU-b", 1, 1, [("GPU-a",)]),
        ("0,1", 1, 9, [("0",), ("1",)]),
    ],
)
def test_gpu_shares_respect_what_is_visible(
    monkeypatch: pytest.MonkeyPatch, visible: str, per_cell: int, at_once: int | None, expected: list[tuple[str, ...]]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert shares(LocalEngine(1, per_cell, at_once)) == expected


def test_all_gpus_are_shared_out_when_none_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(local, "gpus", lambda: ({}, {}))
    assert shares(LocalEngine(1, 1)) == [("0",), ("1",)]


@pytest.mark.parametrize("visible", ["", "0"])
def test_too_few_gpus_for_one_cell(monkeypatch: pytest.MonkeyPatch, visible: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(PreflightError, match=r"a cell needs 2 GPU\(s\); got '[01] visible'; next: `--set resources"):
        LocalEngine(1, 2)


def test_a_worker_sees_its_share_of_the_machine_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    engine = LocalEngine(4, 1)
    environment = local._environment(engine._slots[1])
    assert environment["CUDA_VISIBLE_DEVICES"] == "3"
    assert {environment[name] for name in local.THREAD_VARIABLES} == {"4"}
    assert local._environment(LocalEngine(1, 0)._slots[0])["CUDA_VISIBLE_DEVICES"] == ""


def test_cells_of_one_study_share_a_warm_worker(tmp_path: Path) -> None:
    store, other = laid_down(tmp_path / "one"), laid_down(tmp_path / "other")
    engine = LocalEngine(at_once=1)
    seen: list[psutil.Process] = []
    for job in (claimed(store, 0), claimed(store, 1), claimed(other, 0)):
        engine.submit(job)
        (worker,) = eventually(lambda: [w for w in workers_of(tmp_path) if str(job.root) in w.cmdline()], "a worker")  # noqa: B023
        seen.append(worker)
        eventually(lambda: any(isinstance(event, Ended) for event in engine.poll(0.5)), "the end of a cell")
    assert seen[0] == seen[1] != seen[2]
    engine.close()
    assert workers_of(tmp_path) == []


def test_more_jobs_than_slots_are_refused(tmp_path: Path) -> None:
    store = laid_down(tmp_path / "run")
    engine = LocalEngine(at_once=1)
    engine.submit(claimed(store, 0))
    with pytest.raises(PreflightError, match=r"no slot is free for cell .*; got '1 slots'"):
        engine.submit(claimed(store, 3))
    engine.close()


def test_an_idle_worker_that_died_is_replaced(tmp_path: Path) -> None:
    store = laid_down(tmp_path / "run")
    engine = LocalEngine(at_once=1)
    for index in (0, 3):
        job = claimed(store, index)
        engine.submit(job)
        eventually(lambda: any(isinstance(event, Ended) for event in engine.poll(0.5)), "the end of a cell")
        assert store.finished(job.cell_id) is not None
        (worker,) = workers_of(tmp_path)
        worker.kill()
        eventually(lambda: engine._slots[0].worker is None, "the engine to notice")
    engine.close()


def test_half_a_line_of_a_killed_worker_is_no_event(tmp_path: Path) -> None:
    engine = LocalEngine(at_once=1)
    store = laid_down(tmp_path / "run")
    engine.submit(claimed(store, 0))
    worker = engine._slots[0].worker
    assert worker is not None
    engine._hear(engine._slots[0], worker, '{"event": "ended", "exit_c')
    assert worker.job is not None
    engine.close()


def test_the_machine_has_cpus() -> None:
    assert local._cpus() >= 1


def test_a_platform_without_affinity_counts_its_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(self: psutil.Process) -> list[int]:
        raise AttributeError("cpu_affinity")

    monkeypatch.setattr(psutil.Process, "cpu_affinity", missing)
    assert local._cpus() == psutil.cpu_count()
