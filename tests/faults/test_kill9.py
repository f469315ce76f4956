"""Killed at random instants and resumed, a study ends as if nothing had happened. Full form: `NULLARM_KILLS=50`."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pyarrow as pa
import pytest
from kill9 import Campaign, cell_faults, faults_of, redone, table_faults

from nullarm.store.study_store import StudyStore
from nullarm.store.tables import export_tables
from support.rehearsals import finish, laid_down, writer_of

KILLS = int(os.environ.get("NULLARM_KILLS", "8"))


def test_killed_anywhere_and_resumed_a_study_ends_the_same(tmp_path: Path) -> None:
    tally = Campaign("rehearsal", tmp_path).run(KILLS, seed=1)
    assert tally.faults == []
    assert tally.kills == KILLS


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A finished study directory with its tables."""
    with laid_down(tmp_path / "run") as store:
        for cell in store.plan:
            finish(store, cell)
        export_tables(store)
    return tmp_path / "run"


def test_a_round_without_faults_has_none(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path / "other")
    assert faults_of(root, tmp_path / "other") == []


def test_a_table_that_differs_is_found(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path / "other")
    table = root / "tables" / "cells.parquet"
    table.write_bytes(table.read_bytes() + b"\0")
    assert faults_of(root, tmp_path / "other") == ["table cells.parquet differs"]
    table.unlink()
    assert table_faults(root / "tables", tmp_path / "other" / "tables") == ["table cells.parquet differs"]
    assert table_faults(tmp_path / "none", tmp_path / "none") == ["there are no tables"]


def test_a_cell_without_a_record_or_a_plan_is_found(root: Path) -> None:
    with StudyStore.open(root) as store:
        store.paths.cell(store.plan.cells[0].id).record.unlink()
    assert cell_faults(root) == ["6 cells planned, 6 directories, 5 records"]
    (root / "cells" / "0123").mkdir()
    assert cell_faults(root) == ["6 cells planned, 7 directories, 5 records"]


def test_an_item_that_occurs_twice_is_found(tmp_path: Path) -> None:
    with laid_down(tmp_path / "run", {"seeds": [0]}) as store:
        for cell in store.plan:
            writer = writer_of(store, cell)
            writer.table_artefact("items", pa.table({"item": ["a", "a"], "score": [1.0, 1.0]}))
            writer.commit({})
        export_tables(store)
        ids = [cell.id for cell in store.plan]
    assert cell_faults(tmp_path / "run") == [f"item a of cell {cell_id} occurs twice" for cell_id in ids]


def test_chunks_that_are_begun_again_are_counted_per_attempt(root: Path) -> None:
    log = (
        "── attempt 1 · now\nchunk a\nchunk b\nchunk c\n"
        "── attempt 2 · now\nchunk c\nchunk d\n"
        "── attempt 3 · now\nchunk b\nchunk d\nchunk e\n"
    )
    assert redone(log) == [[], ["c"], ["b", "d"]]
    with StudyStore.open(root) as store:
        cell = store.plan.cells[0].id
        store.paths.cell(cell).log.write_text(log)
    assert cell_faults(root) == [f"one attempt at cell {cell} began 2 chunks again"]
