"""The final tables hold what was found, in plan order, and nothing else."""

from __future__ import annotations

import csv
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from nullarm.store.study_store import StudyStore
from nullarm.store.tables import export_tables
from support.rehearsals import finish, laid_down, writer_of


def tables(store: StudyStore) -> dict[str, bytes]:
    export_tables(store)
    return {path.name: path.read_bytes() for path in sorted(store.paths.tables.iterdir())}


def test_the_order_and_number_of_attempts_leave_no_trace(tmp_path: Path) -> None:
    smooth, rough = laid_down(tmp_path / "smooth"), laid_down(tmp_path / "rough")
    for number, cell in enumerate(smooth.plan):
        finish(smooth, cell, number)
    for number, cell in reversed(list(enumerate(rough.plan))):
        first = writer_of(rough, cell)
        first.json_chunk("half", lambda: 1)
        rough.paths.cell(cell.id).lease.unlink()  # as if its owner had died
        finish(rough, cell, number)
    assert tables(smooth) == tables(rough)
    assert tables(smooth) == tables(smooth)


def test_one_row_per_item_and_one_per_metric(tmp_path: Path) -> None:
    store = laid_down(tmp_path / "run")
    for number, cell in enumerate(store.plan):
        finish(store, cell, number)
    export_tables(store)
    items = pq.read_table(store.paths.tables / "items.parquet").to_pylist()
    assert len(items) == 12
    assert [row["cell"] for row in items[::2]] == [cell.id for cell in store.plan]
    assert items[3] == {
        "cell": store.plan.cells[1].id, "stage": "measure", "arm": "treated", "replicate": None, "seed": 0,
        "slice": None, "item": "b", "score": 2.0,
    }  # fmt: skip
    cells = pq.read_table(store.paths.tables / "cells.parquet").to_pylist()
    assert [(row["outcome"], row["metric"], row["value"]) for row in cells] == [("ok", "score", i) for i in range(6)]


def test_a_cell_without_metrics_and_a_metric_without_value_keep_their_rows(tmp_path: Path) -> None:
    store = laid_down(tmp_path / "run")
    first, second, *_ = store.plan.cells
    writer_of(store, first).commit({}, outcome="invalid", reason="too few shuffles")
    writer_of(store, second).commit({"b": None, "a": 2})
    export_tables(store)
    rows = pq.read_table(store.paths.tables / "cells.parquet").to_pylist()
    assert [(row["outcome"], row["metric"], row["value"]) for row in rows] == [
        ("invalid", None, None), ("ok", "a", 2.0), ("ok", "b", None),
    ]  # fmt: skip


def test_nothing_finished_gives_empty_tables_and_removes_old_ones(tmp_path: Path) -> None:
    store = laid_down(tmp_path / "run")
    finish(store, store.plan.cells[0])
    assert set(tables(store)) == {"cells.parquet", "items.parquet"}
    store.paths.cell(store.plan.cells[0].id).record.unlink()
    assert set(tables(store)) == {"cells.parquet"}
    assert pq.read_table(store.paths.tables / "cells.parquet").num_rows == 0


def test_measurements_may_differ_from_stage_to_stage(tmp_path: Path) -> None:
    store = laid_down(tmp_path / "run")
    finish(store, store.plan.cells[0])
    writer = writer_of(store, store.plan.cells[1])
    writer.table_artefact("items", pa.table({"item": ["a"], "loss": [0.5]}))
    writer.commit({})
    export_tables(store)
    rows = pq.read_table(store.paths.tables / "items.parquet").to_pylist()
    assert [(row["score"], row["loss"]) for row in rows] == [(1.0, None), (2.0, None), (None, 0.5)]


def test_the_manifest_has_one_line_per_planned_cell(tmp_path: Path) -> None:
    store = laid_down(tmp_path / "run")
    first, second, *_ = store.plan.cells
    finish(store, first)
    writer_of(store, second).commit({}, outcome="undertrained", reason='accuracy 0.1, "low"')
    export_tables(store)
    with open(store.paths.manifest, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == ["ok", "undertrained", *["open"] * 4]
    assert rows[1]["reason"] == 'accuracy 0.1, "low"'
    assert rows[0]["artefacts"].startswith("artefacts/items-")
    assert len(rows[0]["record_sha256"]) == 64
