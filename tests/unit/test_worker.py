"""The worker: one cell, or one after the other, never outliving its coordinator."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nullarm import worker
from nullarm.errors import Preempted
from nullarm.store.cell import CellWriter, read_failure
from nullarm.store.lease import Leases, read_lease
from nullarm.store.study_store import StudyStore
from nullarm.study.plan import Cell
from nullarm.worker import run_cell
from support.processes import PATIENCE_S, eventually
from support.rehearsals import laid_down

SLOW = {"parameters.chunks": 200, "parameters.items": 200, "parameters.chunk_seconds": 0.05}


def claimed(store: StudyStore, cell: Cell) -> int:
    """Number of the cell's next attempt."""
    leases = Leases()
    lease = store.claim(cell, leases)
    assert lease is not None
    leases.release(store.paths.cell(cell.id))
    return lease.attempt


def run_here(store: StudyStore, cell: Cell, attempt: int | None = None) -> int:
    return run_cell(store.paths.root, cell.id, attempt or claimed(store, cell), lambda: False, lambda *_: None)


@contextmanager
def process(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "nullarm.worker", *map(str, arguments)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as started:
        try:
            yield started
        finally:
            started.kill()


def send(to: subprocess.Popen[str], **message: Any) -> None:
    assert to.stdin is not None
    to.stdin.write(json.dumps(message) + "\n")
    to.stdin.flush()


def heard(of: subprocess.Popen[str]) -> dict[str, Any]:
    """The next event of a worker."""
    assert of.stdout is not None
    event: dict[str, Any] = json.loads(of.stdout.readline())
    return event


def test_a_cell_is_run_to_its_record(tmp_path: Path) -> None:
    store = laid_down(tmp_path / "run")
    prepare, measure, *_ = store.plan.cells
    assert run_here(store, prepare) == 0
    assert run_here(store, measure) == 0
    done = store.finished(measure.id)
    assert done is not None
    assert done.table("items").column_names == ["item", "score"]
    assert set(done.record.provenance) >= {"nullarm", "git", "python", "packages", "host"}


def test_a_cell_whose_need_is_not_finished_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = laid_down(tmp_path / "run")
    measure = store.plan.cells[1]
    assert run_here(store, measure) == 8
    failure = read_failure(store.paths.cell(measure.id))
    assert failure is not None
    assert "needs 'prepare', which is not finished; next: nullarm resume" in failure.message
    assert "error: cell" in capsys.readouterr().out


def test_a_need_that_was_tampered_with_fails(tmp_path: Path) -> None:
    store = laid_down(tmp_path / "run")
    prepare, measure, *_ = store.plan.cells
    run_here(store, prepare)
    (artefact,) = store.paths.cell(prepare.id).artefacts.iterdir()
    artefact.write_bytes(artefact.read_bytes().replace(b"1", b"2"))
    assert run_here(store, measure) == 8
    failure = read_failure(store.paths.cell(measure.id))
    assert failure is not None
    assert failure.kind == "IntegrityError"
    assert "artefact 'difficulty'" in failure.message
    assert "is not what its hash says" in failure.message


def test_a_cell_file_that_was_changed_is_refused(tmp_path: Path) -> None:
    store = laid_down(tmp_path / "run")
    cell = store.plan.cells[0]
    attempt = claimed(store, cell)
    path = store.paths.cell(cell.id).cell
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 7'))
    assert run_here(store, cell, attempt) == 8
    failure = read_failure(store.paths.cell(cell.id))
    assert failure is not None
    assert "was changed: its content has id" in failure.message


def test_a_cell_planned_for_another_version_of_its_protocol_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = laid_down(tmp_path / "run")
    monkeypatch.setattr("nullarm.protocols.rehearsal.Rehearsal.version", 2)
    assert run_here(store, store.plan.cells[0]) == 12
    failure = read_failure(store.paths.cell(store.plan.cells[0].id))
    assert failure is not None
    assert "was planned for version 1 of protocol rehearsal; got 2; next: plan the study again" in failure.message


def test_a_late_attempt_leaves_with_the_code_of_a_lost_lease(tmp_path: Path) -> None:
    store = laid_down(tmp_path / "run")
    cell = store.plan.cells[0]
    late = claimed(store, cell)
    claimed(store, cell)
    assert run_here(store, cell, late) == 8
    assert read_failure(store.paths.cell(cell.id)) is None


def test_a_finished_cell_is_not_done_twice(tmp_path: Path) -> None:
    store = laid_down(tmp_path / "run")
    cell = store.plan.cells[0]
    run_here(store, cell)
    before = store.paths.cell(cell.id).record.read_bytes()
    assert run_here(store, cell) == 8
    assert store.paths.cell(cell.id).record.read_bytes() == before


def test_a_stop_is_honoured_at_the_next_safe_point(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = laid_down(tmp_path / "run")
    prepare, measure, *_ = store.plan.cells
    run_here(store, prepare)
    asked: list[int] = []

    def should_stop() -> bool:
        asked.append(1)
        return len(asked) > 1

    code = run_cell(store.paths.root, measure.id, claimed(store, measure), should_stop, lambda *_: None)
    assert code == Preempted.exit_code
    assert "stopped at a safe point: asked to stop before chunk 1" in capsys.readouterr().out
    assert len(list(store.paths.cell(measure.id).chunks.iterdir())) == 1


def test_a_beating_worker_stops_once_its_cell_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "BEAT_INTERVAL_S", 0.02)
    store = laid_down(tmp_path / "run", SLOW)
    prepare, measure, *_ = store.plan.cells
    run_here(store, prepare)
    attempt = claimed(store, measure)
    paths = store.paths.cell(measure.id)
    codes: list[int] = []

    def work() -> None:
        codes.append(worker._run_with_heartbeat(store.paths.root, measure.id, attempt, lambda: False, lambda *_: None))

    thread = threading.Thread(target=work)
    thread.start()
    eventually(lambda: (held := read_lease(paths)) and held.beat > 1, "a beat")
    claimed(store, measure)
    thread.join(PATIENCE_S)
    assert codes in ([8], [75])
    assert store.finished(measure.id) is None
    CellWriter(paths, attempt + 1)


def test_a_single_cell_from_the_command_line(tmp_path: Path) -> None:
    store = laid_down(tmp_path / "run")
    cell = store.plan.cells[0]
    with process(store.paths.root, cell.id, claimed(store, cell)) as started:
        out, err = started.communicate(timeout=PATIENCE_S)
    assert (started.returncode, err) == (0, "")
    assert json.loads(out) == {"event": "ended", "cell": cell.id, "attempt": 1, "exit_code": 0}
    assert store.paths.cell(cell.id).log.read_text().startswith("── attempt 1 · ")


def test_wrong_arguments_are_a_usage_error() -> None:
    with process("one") as started:
        _, err = started.communicate(timeout=PATIENCE_S)
    assert started.returncode == 2
    assert err.startswith("usage: python -m nullarm.worker STUDY_DIR CELL ATTEMPT")


def test_a_served_worker_runs_one_cell_after_the_other_and_leaves_when_told(tmp_path: Path) -> None:
    store = laid_down(tmp_path / "run")
    prepare, measure, *_ = store.plan.cells
    with process("--serve", store.paths.root) as started:
        for cell in (prepare, measure):
            send(started, cell=cell.id, attempt=claimed(store, cell))
            while (event := heard(started))["event"] != "ended":
                assert event["note"] == "chunks"
            assert event == {"event": "ended", "cell": cell.id, "attempt": 1, "exit_code": 0}
        send(started)
        assert started.wait(PATIENCE_S) == 0
        assert started.stderr is not None
        assert started.stderr.read() == ""


def test_a_served_worker_dies_with_its_coordinator_in_the_middle_of_a_cell(tmp_path: Path) -> None:
    store = laid_down(tmp_path / "run", SLOW)
    prepare, measure, *_ = store.plan.cells
    run_here(store, prepare)
    with process("--serve", store.paths.root) as started:
        send(started, cell=measure.id, attempt=claimed(store, measure))
        assert heard(started)["event"] == "progress"
        assert started.stdin is not None
        started.stdin.close()
        assert started.wait(PATIENCE_S) == Preempted.exit_code
    assert store.finished(measure.id) is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_stops_a_served_worker_at_a_safe_point(tmp_path: Path, number: signal.Signals) -> None:
    store = laid_down(tmp_path / "run", SLOW)
    prepare, measure, *_ = store.plan.cells
    run_here(store, prepare)
    with process("--serve", store.paths.root) as started:
        send(started, cell=measure.id, attempt=claimed(store, measure))
        assert heard(started)["event"] == "progress"
        started.send_signal(number)
        while (event := heard(started))["event"] != "ended":
            pass
        assert event["exit_code"] == Preempted.exit_code
        assert started.wait(PATIENCE_S) == Preempted.exit_code
    made = [line for line in store.paths.cell(measure.id).log.read_text().splitlines() if line.startswith("chunk ")]
    assert len(made) == len(list(store.paths.cell(measure.id).chunks.iterdir()))


def test_a_log_that_cannot_be_written_fails_no_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = laid_down(tmp_path / "run")
    cell = store.plan.cells[0]
    attempt = claimed(store, cell)
    with open(os.devnull) as read_only, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", read_only)
        worker._say("nobody hears this")
        assert run_here(store, cell, attempt) == 0
