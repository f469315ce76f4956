from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from nullarm.errors import StorageError
from nullarm.store import journal as module
from nullarm.store.journal import Change, Journal
from support.disks import little_disk

CELLS = [("c1", "one"), ("c2", "two"), ("c3", "three")]


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    made = Journal(tmp_path / "journal.sqlite")
    yield made
    made.close()


def states(journal: Journal) -> list[tuple[str, str, str]]:
    return [(entry.id, entry.label, entry.state) for entry in journal.entries()]


def test_a_new_index_is_empty(journal: Journal) -> None:
    assert journal.is_empty()
    assert journal.entries() == []
    assert journal.spent() == (0.0, 0.0)


def test_cells_come_in_plan_order_and_keep_their_state(journal: Journal) -> None:
    journal.fill(CELLS)
    journal.update([Change("c2", "done", 3, "ok", 1.5, None), Change("c1", "failed", 1, message="E: bad")])
    assert not journal.is_empty()
    journal.fill([("c4", "four"), ("c2", "zwei"), ("c1", "one")])
    assert states(journal) == [("c4", "four", "pending"), ("c2", "zwei", "done"), ("c1", "one", "failed")]
    second, first = journal.entries()[1:]
    assert (second.attempt, second.outcome, second.seconds) == (3, "ok", 1.5)
    assert first.message == "E: bad"
    assert second.updated > 0


def test_news_of_an_unknown_cell_is_ignored(journal: Journal) -> None:
    journal.fill(CELLS)
    journal.update([Change("gone", "done")])
    assert len(journal.entries()) == 3


def test_what_runs_have_cost(journal: Journal) -> None:
    journal.spend(100.0, 1800.0, 4.0)
    journal.spend(100.0, 3600.0, 4.0)
    journal.spend(200.0, 3600.0, 1.0)
    assert journal.spent() == (7200.0, 5.0)


def test_a_second_reader_sees_what_was_written(journal: Journal) -> None:
    journal.fill(CELLS)
    other = Journal(journal.path)
    assert states(other) == states(journal)
    other.update([Change("c3", "running", 1)])
    assert states(journal)[2] == ("c3", "three", "running")
    other.close()


def test_a_change_that_fails_half_way_changes_nothing(journal: Journal) -> None:
    journal.fill(CELLS)
    with pytest.raises(StorageError, match="cannot use the index"):
        journal.update([Change("c1", "done"), Change("c2", object())])  # type: ignore[arg-type]
    assert {entry.state for entry in journal.entries()} == {"pending"}
    journal.update([Change("c1", "done")])


@pytest.mark.parametrize(
    "content", [b"this is no database, and long enough to be looked at" * 40, b"SQLite format 3\0garbage" * 99]
)
def test_a_file_that_is_no_database_is_replaced(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "journal.sqlite"
    path.write_bytes(content)
    journal = Journal(path)
    assert journal.is_empty()
    journal.fill(CELLS)
    journal.close()


def test_a_database_with_damaged_pages_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    journal = Journal(path)
    journal.fill([(f"cell {i}", "x" * 200) for i in range(500)])
    journal.close()
    data = bytearray(path.read_bytes())
    for page in range(3, len(data) // 4096):
        data[page * 4096 : page * 4096 + 64] = b"\xaa" * 64
    path.write_bytes(data)
    again = Journal(path)
    assert again.is_empty()
    again.close()


def test_a_database_in_use_is_waited_for_and_never_replaced(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOCK_TIMEOUT_S", 0.01)
    journal.fill(CELLS)
    other = sqlite3.connect(journal.path, isolation_level=None)
    impatient = Journal(journal.path)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageError, match="database is locked; next: wait for the other command, or stop it"):
        impatient.update([Change("c1", "done")])
    other.execute("ROLLBACK")
    other.close()
    impatient.close()
    assert len(journal.entries()) == 3


def test_damage_that_is_met_later_names_the_cure(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite")
    journal.fill([(f"cell {i}", "x" * 200) for i in range(500)])
    journal._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    size = journal.path.stat().st_size
    with open(journal.path, "r+b") as file:
        file.seek(8192)
        file.write(b"\xaa" * (size - 8192))
    reader = sqlite3.connect(journal.path)
    journal._db, before = reader, journal._db
    with pytest.raises(StorageError, match=r"journal\.sqlite: it is rebuilt from the cells"):
        journal.entries()
    reader.close()
    before.close()


def test_a_directory_that_does_not_exist_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot use the index .*unable to open database file"):
        Journal(tmp_path / "nowhere" / "journal.sqlite")


def test_a_full_disk_is_a_storage_error_and_loses_nothing(tmp_path: Path) -> None:
    with little_disk(tmp_path / "disk") as disk:
        if not disk.mounted:  # SQLite writes by itself, past Python: only a real disk can refuse
            return
        journal = Journal(disk.root / "journal.sqlite")
        journal.fill(CELLS)
        disk.fill()
        with pytest.raises(StorageError, match="is full; next: free space on"):
            journal.fill([(f"cell {i}", "x" * 500) for i in range(2000)])
        assert len(journal.entries()) == 3
        disk.free()
        journal.update([Change("c1", "done")])
        assert journal.entries()[0].state == "done"
        journal.close()


def test_a_read_only_disk_is_a_storage_error(tmp_path: Path) -> None:
    with little_disk(tmp_path / "disk") as disk:
        if not disk.mounted:
            return
        Journal(disk.root / "journal.sqlite").close()
        disk.make_read_only()
        with pytest.raises(StorageError, match=r"cannot use the index .*; next: check that .* can be written"):
            Journal(disk.root / "journal.sqlite")
