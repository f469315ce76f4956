"""Two runs of one study in one directory at the same time: the cells are shared, and none is done twice."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from kill9 import cell_faults, redone, table_faults

from nullarm.store.study_store import StudyStore
from support.command import finished, nullarm, nullarm_process
from support.processes import PATIENCE_S, workers_of
from support.rehearsals import write_study


def test_two_runs_share_the_cells(tmp_path: Path) -> None:
    study = write_study(tmp_path / "s.yaml", {"parameters.chunk_seconds": 0.1, "seeds": [0, 1, 2, 3]})
    root = tmp_path / "run"
    with ExitStack() as running:
        arguments = ("run", study, "--dir", root, "--at-once", "1")
        processes = [running.enter_context(nullarm_process(*arguments)) for _ in range(2)]
        outcomes = [finished(process, PATIENCE_S) for process in processes]
    assert [(outcome.code, "error" in outcome.err) for outcome in outcomes] == [(0, False)] * 2
    assert workers_of(root) == []
    assert nullarm("run", study, "--dir", tmp_path / "alone", "--engine", "inline").code == 0
    assert table_faults(root / "tables", tmp_path / "alone" / "tables") == []
    assert cell_faults(root) == []
    with StudyStore.open(root) as store:
        logs = [store.paths.cell(cell.id).log.read_text() for cell in store.plan]
    assert [log.count("── attempt ") for log in logs] == [1] * 12
    assert all(redone(log) == [[]] for log in logs)
