"""Chunks, artefacts and the commit of one cell."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from nullarm.errors import IntegrityError, LeaseLost, StorageError
from nullarm.store.atomic import make_directory
from nullarm.store.cell import CellWriter, Failure, finished, read_failure, write_failure
from nullarm.store.lease import Leases
from nullarm.store.paths import CellPaths
from support.disks import little_disk

TABLE = pa.table({"item": ["a", "b"], "score": [0.5, 1.5]})


@pytest.fixture
def paths(tmp_path: Path) -> CellPaths:
    return CellPaths(tmp_path / "cell")


def writer(paths: CellPaths) -> CellWriter:
    """A writer for the next attempt; the one before is late from here on."""
    make_directory(paths.root)
    leases = Leases()
    lease = leases.claim(paths)
    assert lease is not None
    leases.release(paths)
    return CellWriter(paths, lease.attempt)


def never() -> Any:
    raise AssertionError("made again")


def fill(name: str, data: bytes) -> Callable[[Path], None]:
    """Writes one file into the directory of an artefact."""

    def write(directory: Path) -> None:
        (directory / name).write_bytes(data)

    return write


def test_a_chunk_is_made_once(paths: CellPaths) -> None:
    first = writer(paths)
    assert not first.has_chunk("a-0001")
    assert first.json_chunk("a-0001", lambda: {"x": (1, 2)}) == {"x": [1, 2]}
    assert first.json_chunk("a-0001", never) == {"x": [1, 2]}
    second = writer(paths)
    assert second.has_chunk("a-0001")
    assert second.json_chunk("a-0001", never) == {"x": [1, 2]}
    assert second.table_chunk("t", lambda: TABLE).equals(TABLE)
    assert second.table_chunk("t", never).equals(TABLE)


def test_a_key_that_begins_like_another_is_another(paths: CellPaths) -> None:
    made = writer(paths)
    for key in ("a", "a-b", "a-b-c"):
        assert made.json_chunk(key, partial(str, key)) == key
    assert len(list(paths.chunks.iterdir())) == 3


def test_each_chunk_that_is_made_leaves_a_line_in_the_log(paths: CellPaths, capsys: pytest.CaptureFixture[str]) -> None:
    made = writer(paths)
    made.json_chunk("a", lambda: 1)
    made.json_chunk("a", never)
    assert capsys.readouterr().out == "chunk a\n"


@pytest.mark.parametrize("damage", [lambda d: d[:-1], lambda d: bytes([d[0] ^ 1]) + d[1:], lambda d: b""])
def test_a_damaged_chunk_is_made_again(paths: CellPaths, damage: Callable[[bytes], bytes]) -> None:
    writer(paths).json_chunk("a", lambda: [1])
    (chunk,) = paths.chunks.iterdir()
    chunk.write_bytes(damage(chunk.read_bytes()))
    again = writer(paths)
    assert not again.has_chunk("a")
    assert again.json_chunk("a", lambda: [2]) == [2]
    assert len(list(paths.chunks.iterdir())) == 1


def test_what_an_interrupted_write_left_is_swept(paths: CellPaths) -> None:
    writer(paths)
    for directory in (paths.root, paths.chunks, paths.artefacts):
        (directory / ".tmp-half-0123").write_bytes(b"half")
    (paths.artefacts / ".tmp-adapter-0123").mkdir()
    writer(paths)
    assert not list(paths.root.rglob(".tmp-*"))


def test_a_chunk_that_fails_to_be_made_is_not_there(paths: CellPaths) -> None:
    made = writer(paths)
    with pytest.raises(AssertionError, match="made again"):
        made.json_chunk("a", never)
    assert not list(paths.chunks.iterdir())


def test_a_finished_cell(paths: CellPaths) -> None:
    made = writer(paths)
    made.table_artefact("items", TABLE)
    made.json_artefact("ranks", {"q": 4})
    made.directory_artefact("adapter", fill("weights", b"w"))
    (made.paths.scratch / "checkpoint").write_text("large")
    assert finished(paths) is None
    record = made.commit({"score": 0.5, "n": 2, "missing": None}, seconds=1.5, provenance={"host": "h"})
    done = finished(paths)
    assert done is not None
    assert done.record == record
    assert (record.outcome, record.attempt, record.metrics["score"]) == ("ok", 1, 0.5)
    assert done.table("items").equals(TABLE)
    assert done.json("ranks") == {"q": 4}
    assert (done.artefact("adapter") / "weights").read_bytes() == b"w"
    assert not paths.scratch.exists()


def test_a_finding_that_stops_the_study_has_its_reason(paths: CellPaths) -> None:
    record = writer(paths).commit({}, outcome="undertrained", reason="accuracy 0.2 < 0.6")
    assert (record.outcome, record.reason) == ("undertrained", "accuracy 0.2 < 0.6")


def test_a_metric_that_is_no_number_is_refused(paths: CellPaths) -> None:
    with pytest.raises(ValueError, match="not a finite number: nan"):
        writer(paths).commit({"loss": float("nan")})
    assert finished(paths) is None


def test_a_record_is_written_once(paths: CellPaths) -> None:
    writer(paths).commit({"score": 1.0})
    before = paths.record.read_bytes()
    with pytest.raises(LeaseLost, match="is finished; its record stays as it is"):
        writer(paths)
    assert paths.record.read_bytes() == before


def test_of_two_commits_of_one_attempt_the_first_counts(paths: CellPaths) -> None:
    made = writer(paths)
    made.commit({"score": 1.0})
    with pytest.raises(LeaseLost, match="is finished"):
        made.commit({"score": 2.0})
    done = finished(paths)
    assert done is not None
    assert done.record.metrics == {"score": 1.0}


@pytest.mark.parametrize(
    "write",
    [
        lambda w: w.json_chunk("late", lambda: 1),
        lambda w: w.table_chunk("late", lambda: TABLE),
        lambda w: w.json_artefact("late", 1),
        lambda w: w.table_artefact("late", TABLE),
        lambda w: w.directory_artefact("late", lambda d: None),
        lambda w: w.commit({"score": 1.0}),
        lambda w: write_failure(w.paths, Failure(w.attempt, "E", "late", 1)),
    ],
    ids=["json chunk", "table chunk", "json artefact", "table artefact", "directory", "record", "failure"],
)
def test_a_late_writer_is_refused_everywhere(paths: CellPaths, write: Callable[[CellWriter], object]) -> None:
    late = writer(paths)
    writer(paths)
    with pytest.raises(LeaseLost, match="attempt 1 of cell cell may not write: attempt 2 owns the cell"):
        write(late)
    committed = [p for p in paths.root.rglob("*late*") if not p.name.startswith(".tmp-")]
    assert committed == []
    assert finished(paths) is None
    assert read_failure(paths) is None


def test_a_late_writer_does_not_remove_a_damaged_chunk_either(paths: CellPaths) -> None:
    late = writer(paths)
    late.json_chunk("a", lambda: 1)
    (chunk,) = paths.chunks.iterdir()
    chunk.write_bytes(b"damaged")
    writer(paths)
    with pytest.raises(LeaseLost):
        late.json_chunk("a", lambda: 2)
    assert chunk.exists()


def test_a_late_writer_cannot_even_be_opened(paths: CellPaths) -> None:
    writer(paths)
    writer(paths)
    with pytest.raises(LeaseLost):
        CellWriter(paths, 1)


def test_an_artefact_that_was_left_half_is_replaced(paths: CellPaths) -> None:
    first = writer(paths)
    first.directory_artefact("adapter", fill("w", b"weights"))
    (target,) = paths.artefacts.iterdir()
    (target / "w").write_bytes(b"damaged")
    second = writer(paths)
    second.directory_artefact("adapter", fill("w", b"weights"))
    second.commit({})
    done = finished(paths)
    assert done is not None
    assert (done.artefact("adapter") / "w").read_bytes() == b"weights"


def test_an_artefact_is_checked_whenever_it_is_read(paths: CellPaths) -> None:
    made = writer(paths)
    made.json_artefact("ranks", {"q": 4})
    made.directory_artefact("adapter", fill("w", b"weights"))
    made.commit({})
    done = finished(paths)
    assert done is not None
    file = done.artefact("ranks")
    file.write_bytes(file.read_bytes().replace(b"4", b"5"))
    with pytest.raises(
        IntegrityError,
        match=r"artefact 'ranks' of cell cell is not what its hash says; next: nullarm resume .* --skip",
    ):
        done.json("ranks")
    (done.artefact("adapter") / "w").write_bytes(b"weightz")
    with pytest.raises(IntegrityError, match="artefact 'adapter' of cell cell is not what its hash says"):
        done.artefact("adapter")
    with pytest.raises(IntegrityError, match="has no artefact 'spectra'; valid: adapter, ranks"):
        done.artefact("spectra")


@pytest.mark.parametrize("change", [Path.unlink, lambda p: p.write_bytes(b"")])
def test_a_record_without_its_artefacts_is_no_record(paths: CellPaths, change: Callable[[Path], object]) -> None:
    made = writer(paths)
    made.json_artefact("ranks", {"q": 4})
    made.commit({})
    (file,) = paths.artefacts.iterdir()
    change(file)
    assert finished(paths) is None
    again = writer(paths)
    again.json_artefact("ranks", {"q": 4})
    assert again.commit({}).attempt == 2
    assert finished(paths) is not None


def test_a_failure_is_noted_until_the_cell_is_finished(paths: CellPaths) -> None:
    made = writer(paths)
    write_failure(paths, Failure(1, "ModelError", "no such model", 10))
    found = read_failure(paths)
    assert found == Failure(1, "ModelError", "no such model", 10)
    assert str(found) == "ModelError: no such model"
    made.commit({})
    assert read_failure(paths) is None


@pytest.mark.parametrize("damage", [b"", b"[1]", b'{"attempt": 1}', b"\xff"])
def test_a_damaged_note_of_a_failure_is_no_note(paths: CellPaths, damage: bytes) -> None:
    writer(paths)
    paths.failure.write_bytes(damage)
    assert read_failure(paths) is None


def test_a_full_disk_keeps_every_chunk_that_was_committed(paths: CellPaths, tmp_path: Path) -> None:
    with little_disk(tmp_path / "disk") as disk:
        on_disk = CellPaths(disk.root / "cell")
        made = writer(on_disk)
        made.json_chunk("a", lambda: "x" * 1000)
        disk.fill()
        with pytest.raises(StorageError, match="the disk is full"):
            made.json_chunk("b", lambda: "y" * 50_000)
        with pytest.raises(StorageError, match="the disk is full"):
            made.directory_artefact("d", fill("f", b"z" * 50_000))
        with pytest.raises(StorageError, match="the disk is full"):
            made.commit({"score": 1.0}, provenance={"much": "p" * 50_000})
        assert finished(on_disk) is None
        assert made.has_chunk("a")
        assert not made.has_chunk("b")
        disk.free()
        again = writer(on_disk)
        assert again.json_chunk("a", never) == "x" * 1000
        again.json_chunk("b", lambda: "y" * 50_000)
        again.commit({"score": 1.0})
        assert finished(on_disk) is not None


def test_a_log_on_a_full_disk_is_a_storage_error(paths: CellPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line about a chunk goes to a log on the same disk."""
    made = writer(paths)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("builtins.print", refuse)
    with pytest.raises(StorageError, match=r"cannot write .*log\.txt: the disk is full"):
        made.json_chunk("a", lambda: 1)


def test_a_file_artefact_is_streamed_into_a_path_and_recorded(paths: CellPaths) -> None:
    made = writer(paths)
    made.file_artefact("grid", "bin", lambda path: path.write_bytes(b"x" * 10))
    made.commit({})
    done = finished(paths)
    assert done is not None
    assert done.artefact("grid").read_bytes() == b"x" * 10
    assert done.artefact("grid").suffix == ".bin"
    assert not list(paths.artefacts.glob(".*"))


def test_a_file_artefact_that_fails_half_way_leaves_nothing_recorded(paths: CellPaths) -> None:
    made = writer(paths)

    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        made.file_artefact("grid", "bin", fail)
    assert made.commit({}).artefacts == {}
    late = CellPaths(paths.root.parent / "late")
    old = writer(late)
    writer(late)
    with pytest.raises(LeaseLost):
        old.file_artefact("grid", "bin", lambda path: path.write_bytes(b"x"))
