"""One study directory: laid down, opened, claimed, indexed, damaged, and refused."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from nullarm.conduct import prepare
from nullarm.errors import ForeignStudyError, FormatError, IntegrityError, LeaseLost, StorageError, StudyError
from nullarm.store import study_store as module
from nullarm.store.cell import Failure, write_failure
from nullarm.store.lease import Leases
from nullarm.store.study_store import StudyStore, analysis_hash, read_lock
from support.disks import little_disk
from support.rehearsals import finish, laid_down, study, writer_of


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "run"


def states(store: StudyStore) -> list[str]:
    return [entry.state for entry in store.journal.entries()]


def change_lock(root: Path, **changes: Any) -> None:
    path = root / "study.lock.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changes}))


def test_a_new_study_directory(root: Path) -> None:
    store = laid_down(root)
    assert states(store) == ["pending"] * 6
    assert store.lock.study == study()
    assert store.plan.hash == prepare(study()).plan.hash
    assert [cell.estimate for cell in store.plan] == [cell.estimate for cell in prepare(study()).plan]
    assert store.lock.declared_analysis is None
    assert not store.lock.exploratory


def test_the_directory_explains_itself(root: Path) -> None:
    store = laid_down(root)
    finish(store, store.plan.cells[0])
    cell = json.loads((store.paths.cell(store.plan.cells[0].id).cell).read_text())
    assert (cell["id"], cell["label"]) == (store.plan.cells[0].id, "seed 0 · prepare")
    assert yaml.safe_load(store.paths.lock.read_text())["analysis_hash"] == analysis_hash(study())


def test_going_on_keeps_what_is_finished(root: Path) -> None:
    with laid_down(root) as store:
        finish(store, store.plan.cells[0])
    with laid_down(root, {"seeds": [0, 1, 2]}) as longer:
        assert states(longer).count("done") == 1
        assert len(longer.plan) == 9
    with StudyStore.open(root) as opened:
        assert states(opened).count("done") == 1


def test_a_seed_that_is_taken_out_leaves_the_plan_but_not_the_disk(root: Path) -> None:
    with laid_down(root) as store:
        taken_out = next(cell for cell in store.plan if cell.seed == 1)
        finish(store, taken_out)
    with laid_down(root, {"seeds": [0]}) as shorter:
        assert len(states(shorter)) == 3
        assert shorter.finished(taken_out.id) is not None


@pytest.mark.parametrize("changes", [{"name": "other"}, {"smoke": True}])
def test_a_directory_of_another_study_is_refused(root: Path, changes: dict[str, Any]) -> None:
    laid_down(root).close()
    before = (root / "plan.json").read_bytes()
    with pytest.raises(ForeignStudyError, match=r"holds another study; got 'little \(rehearsal\)'; valid: .*--dir"):
        laid_down(root, changes)
    assert (root / "plan.json").read_bytes() == before


def test_a_directory_with_something_else_in_it_is_refused(root: Path, tmp_path: Path) -> None:
    root.mkdir()
    (root / "thesis.tex").write_text("")
    with pytest.raises(ForeignStudyError, match="is not empty and holds no study; next: choose another directory"):
        laid_down(root)
    assert os.listdir(root) == ["thesis.tex"]
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ForeignStudyError, match="is not empty and holds no study"):
        laid_down(file)


@pytest.mark.parametrize("reached", ["cells", "plan.json", ".tmp-plan.json-0123", ".tmp-study.lock.yaml-0123"])
def test_laying_down_goes_on_where_it_was_killed(root: Path, reached: str) -> None:
    (root / "cells").mkdir(parents=True)
    if reached != "cells":
        (root / reached).write_text("[")
    assert states(laid_down(root)) == ["pending"] * 6


def test_cells_without_a_lock_file_are_not_taken_over(root: Path) -> None:
    store = laid_down(root)
    finish(store, store.plan.cells[0])
    store.paths.lock.unlink()
    with pytest.raises(ForeignStudyError, match="holds no study"):
        laid_down(root)


def test_a_directory_that_is_none_is_refused(root: Path) -> None:
    with pytest.raises(StudyError, match=r"is not a study directory \(no study\.lock\.yaml\); next: `nullarm run"):
        StudyStore.open(root)
    assert not root.exists()


def test_a_newer_format_is_refused_by_everyone(root: Path) -> None:
    laid_down(root).close()
    change_lock(root, format=2, study={"new": 1})
    for open_ in (StudyStore.open, laid_down):
        with pytest.raises(FormatError, match="study directory format 2 is newer than this nullarm reads"):
            open_(root)


@pytest.mark.parametrize("text", [b"", b"format: one", b"[1", b"\xff\xfe", b"format: 1\nstudy: {}\n", b"format: 1\n"])
def test_a_damaged_lock_file_is_refused(root: Path, text: bytes) -> None:
    laid_down(root).close()
    (root / "study.lock.yaml").write_bytes(text)
    with pytest.raises(IntegrityError, match=r"study\.lock\.yaml is damaged"):
        StudyStore.open(root)


@pytest.mark.parametrize("damage", ["[]", "{", '[{"id": 1}]', None])
def test_a_damaged_plan_is_refused_and_can_be_laid_down_again(root: Path, damage: str | None) -> None:
    laid_down(root).close()
    plan = root / "plan.json"
    plan.unlink() if damage is None else plan.write_text(damage)
    with pytest.raises(IntegrityError, match=r"plan\.json is damaged or of another plan than .*; next: lay the study"):
        _ = StudyStore.open(root).plan
    assert len(laid_down(root).plan) == 6


def test_a_bit_that_changes_what_a_cell_asks_is_seen(root: Path) -> None:
    laid_down(root).close()
    plan = root / "plan.json"
    plan.write_text(plan.read_text().replace('"items": 4', '"items": 5', 1))
    with pytest.raises(IntegrityError, match="damaged or of another plan"):
        _ = StudyStore.open(root).plan


def test_the_declared_analysis_is_fixed_before_the_first_cell(root: Path) -> None:
    with laid_down(root) as store:
        store.declare_analysis()
    with laid_down(root, {"analysis.margin": 0.2}) as store:
        store.declare_analysis()
        assert store.lock.exploratory
        assert store.lock.declared_analysis == study().analysis
    with laid_down(root) as store:
        assert not store.lock.exploratory


def test_a_claim_is_exclusive_and_counts_attempts(root: Path) -> None:
    store = laid_down(root)
    cell, leases = store.plan.cells[0], Leases()
    lease = store.claim(cell, leases)
    assert lease is not None
    assert store.claim(cell, Leases()) is None
    assert store.journal.entries()[0].state == "running"
    leases.release(store.paths.cell(cell.id))
    again = store.claim(cell, Leases())
    assert again is not None
    assert (lease.attempt, again.attempt) == (1, 2)


def test_a_claim_renews_what_the_cell_is(root: Path) -> None:
    """Settings (batch size, path of a model) are no part of the identity: the next attempt takes the new ones."""
    store = laid_down(root)
    cell = store.plan.cells[0]
    writer_of(store, cell)
    path = store.paths.cell(cell.id).cell
    path.write_bytes(b"{")
    Leases().claim(store.paths.cell(cell.id))
    leases = Leases()
    leases._held[store.paths.cell(cell.id)] = 1
    leases.release(store.paths.cell(cell.id))
    store.claim(cell, Leases())
    assert json.loads(path.read_text())["id"] == cell.id


def test_the_states_of_cells(root: Path) -> None:
    store = laid_down(root)
    done, failed, running, begun, *_ = store.plan.cells
    finish(store, done)
    failing = Leases()
    store.claim(failed, failing)
    write_failure(store.paths.cell(failed.id), Failure(1, "ModelError", "no model", 10))
    failing.release(store.paths.cell(failed.id))
    store.claim(running, Leases())
    stopped = Leases()
    store.claim(begun, stopped)
    stopped.release(store.paths.cell(begun.id))
    store.reconcile()
    assert states(store) == ["done", "failed", "running", "pending", "pending", "pending"]
    assert store.journal.entries()[1].message == "ModelError: no model"


def test_a_failure_of_an_earlier_attempt_is_history(root: Path) -> None:
    store = laid_down(root)
    cell = store.plan.cells[0]
    leases = Leases()
    store.claim(cell, leases)
    write_failure(store.paths.cell(cell.id), Failure(1, "E", "bad", 1))
    leases.release(store.paths.cell(cell.id))
    store.claim(cell, leases)
    leases.release(store.paths.cell(cell.id))
    assert store.observe(cell.id) is None
    assert states(store)[0] == "pending"


@pytest.mark.parametrize("damage", ["delete", "garbage"])
def test_the_index_is_rebuilt_from_the_cells(root: Path, damage: str) -> None:
    with laid_down(root, {"budget.price_per_hour": 3600.0}) as store:
        first, second, *_ = store.plan.cells
        finish(store, first)
        store.claim(second, Leases())
        store.reconcile()
        before = store.journal.entries()
    journal = root / "journal.sqlite"
    journal.unlink() if damage == "delete" else journal.write_bytes(b"garbage" * 1000)
    with StudyStore.open(root) as again:
        after = again.journal.entries()
    assert [(e.id, e.state, e.attempt, e.label) for e in after] == [(e.id, e.state, e.attempt, e.label) for e in before]


def test_a_rebuilt_index_still_knows_about_what_was_spent(root: Path) -> None:
    with laid_down(root, {"budget.price_per_hour": 3600.0}) as store:
        writer_of(store, store.plan.cells[0]).commit({}, seconds=1.5)
        writer_of(store, store.plan.cells[1]).commit({}, seconds=2.5)
    (root / "journal.sqlite").unlink()
    for _ in range(2):
        with StudyStore.open(root) as again:
            assert again.journal.spent() == (4.0, 4.0)


def test_a_record_that_is_gone_opens_its_cell_again(root: Path) -> None:
    """As the error about a damaged artefact tells people to do."""
    with laid_down(root) as store:
        finish(store, store.plan.cells[0])
        store.paths.cell(store.plan.cells[0].id).record.unlink()
        assert store.finished(store.plan.cells[0].id) is None
    with StudyStore.open(root) as again:
        assert states(again)[0] != "done"


def test_a_record_that_was_tampered_with_opens_its_cell_again(root: Path) -> None:
    with laid_down(root) as store:
        cell = store.plan.cells[0]
        finish(store, cell)
        assert store.finished(cell.id) is not None
        record = store.paths.cell(cell.id).record
        record.write_bytes(record.read_bytes().replace(b'"attempt": 1', b'"attempt": 7'))
        assert store.finished(cell.id) is None
        assert store.observe(cell.id) is None
        assert states(store)[0] != "done"


def test_a_cell_directory_that_is_gone_opens_its_cell_again(root: Path) -> None:
    with laid_down(root) as store:
        finish(store, store.plan.cells[0])
        shutil.rmtree(store.paths.cell(store.plan.cells[0].id).root)
        store.reconcile()
        assert states(store)[0] == "pending"


def test_a_damaged_lease_leaves_the_store_open_and_names_the_cell(root: Path) -> None:
    with laid_down(root) as store:
        first, second, *_ = store.plan.cells
        store.claim(first, Leases())
        finish(store, second)
        for cell in (first, second):
            store.paths.cell(cell.id).lease.write_bytes(b"\0")
    with StudyStore.open(root) as again:
        assert states(again)[:2] == ["failed", "done"]
        assert "lease.json is damaged" in str(again.journal.entries()[0].message)
        with pytest.raises(IntegrityError, match="damaged"):
            again.claim(first, Leases())


def test_a_finished_cell_is_read_from_disk_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = laid_down(root)
    finish(store, store.plan.cells[0])
    assert store.finished(store.plan.cells[0].id) is not None
    monkeypatch.setattr(module, "finished", lambda paths: pytest.fail("read again"))
    assert store.finished(store.plan.cells[0].id) is not None


def test_the_directory_can_be_moved_and_copied(root: Path, tmp_path: Path) -> None:
    with laid_down(root) as store:
        finish(store, store.plan.cells[0])
        cell = store.plan.cells[0]
    shutil.copytree(root, tmp_path / "copy")
    shutil.rmtree(root)
    with StudyStore.open(tmp_path / "copy") as copied:
        done = copied.finished(cell.id)
        assert done is not None
        assert done.table("items").num_rows == 2


def test_a_full_disk_leaves_a_store_that_opens(tmp_path: Path) -> None:
    with little_disk(tmp_path / "disk") as disk:
        root = disk.root / "run"
        store = laid_down(root)
        finish(store, store.plan.cells[0])
        disk.fill()
        with pytest.raises(StorageError, match="is full; next: free space on"):
            finish(store, store.plan.cells[1])
        store.close()
        with StudyStore.open(root) as again:
            assert again.finished(store.plan.cells[0].id) is not None
            assert states(again)[0] == "done"
        disk.free()
        with StudyStore.open(root) as again:
            assert states(again)[0] == "done"


def test_a_read_only_directory_can_be_looked_at(tmp_path: Path) -> None:
    with little_disk(tmp_path / "disk") as disk:
        root = disk.root / "run"
        store = laid_down(root)
        finish(store, store.plan.cells[0])
        store.close()
        disk.make_read_only()
        with StudyStore.open(root) as again:
            assert states(again)[0] == "done"
            with pytest.raises(StorageError, match="read-only"):
                again.claim(store.plan.cells[1], Leases())


def test_a_read_only_disk_is_refused_in_one_line(tmp_path: Path) -> None:
    with little_disk(tmp_path / "disk") as disk:
        disk.make_read_only()
        with pytest.raises(StorageError, match="read-only; next: choose another directory"):
            laid_down(disk.root / "run")


def test_a_late_writer_is_refused_by_the_store_too(root: Path) -> None:
    store = laid_down(root)
    cell = store.plan.cells[0]
    late = writer_of(store, cell)
    leases = Leases()
    leases._held[store.paths.cell(cell.id)] = late.attempt
    leases.release(store.paths.cell(cell.id))
    finish(store, cell)
    with pytest.raises(LeaseLost):
        late.commit({"score": 9.0})
    done = store.finished(cell.id)
    assert done is not None
    assert done.record.metrics == {"score": 1.0}


def test_read_lock_needs_no_index(root: Path) -> None:
    laid_down(root).close()
    (root / "journal.sqlite").unlink()
    assert read_lock(root).study.name == "little"
    assert not (root / "journal.sqlite").exists()


def test_a_copy_without_empty_directories_can_be_opened(root: Path) -> None:
    laid_down(root).close()
    (root / "cells").rmdir()
    with StudyStore.open(root) as store:
        assert states(store) == ["pending"] * 6
        finish(store, store.plan.cells[0])


def test_a_file_where_a_directory_of_a_cell_should_be_is_a_storage_error(root: Path) -> None:
    with laid_down(root) as store:
        paths = store.paths.cell(store.plan.cells[0].id)
        paths.root.mkdir()
        paths.chunks.write_text("")
        with pytest.raises(StorageError, match=r"cannot write .*: File exists; next: check the disk"):
            store.claim(store.plan.cells[0], Leases())


def test_a_lock_file_with_a_wrong_key_is_refused_in_one_line(root: Path) -> None:
    laid_down(root).close()
    lock = root / "study.lock.yaml"
    lock.write_text(lock.read_text().replace("question:", "qestion:", 1))
    with pytest.raises(IntegrityError) as caught:
        StudyStore.open(root)
    words = "is damaged: study.lock.yaml: unknown key 'qestion' (did you mean 'question'?) (and 1 more)"
    assert words in str(caught.value)


def test_verification_opens_cells_whose_artefacts_are_not_what_they_were(root: Path) -> None:
    store = laid_down(root)
    first, second = store.plan.cells[:2]
    for cell in (first, second):
        finish(store, cell)
    assert store.verify() == {}
    artefact = next(store.paths.cell(second.id).artefacts.iterdir())
    data = artefact.read_bytes()
    artefact.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))  # of the same size, so that a glance does not see it
    assert store.finished(second.id) is not None
    assert store.verify() == {second.id: f"artefact 'items' of cell {second.id} is not what its hash says"}
    assert store.finished(second.id) is None
    assert store.finished(first.id) is not None
