"""A record counts only when its own hash agrees."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nullarm.errors import FormatError, IntegrityError
from nullarm.store.atomic import make_directory
from nullarm.store.files import encode_json, write_json
from nullarm.store.paths import CellPaths
from nullarm.store.record import FORMAT, Artefact, FinishedCell, Record, read_record
from nullarm.study.identity import content_hash

RECORD = Record(
    cell_id="cell", attempt=2, outcome="ok", metrics={"score": 0.25, "n": 3, "none": None}, artefacts={}, seconds=1.0,
    provenance={"host": "h"},
)  # fmt: skip


@pytest.fixture
def paths(tmp_path: Path) -> CellPaths:
    made = CellPaths(tmp_path / "cell")
    make_directory(made.root)
    write_json(made.record, RECORD.to_json())
    return made


def test_a_record_comes_back(paths: CellPaths) -> None:
    assert read_record(paths) == RECORD


def test_a_cell_without_a_record_is_not_finished(paths: CellPaths) -> None:
    paths.record.unlink()
    assert read_record(paths) is None


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
def test_no_flipped_bit_goes_unseen(paths: CellPaths, data: st.DataObject) -> None:
    """Any flipped bit that changes the content makes the record none; one in the white space may pass."""
    whole = bytearray(encode_json(RECORD.to_json()))
    place = data.draw(st.integers(0, len(whole) - 1))
    whole[place] ^= 1 << data.draw(st.integers(0, 7))
    paths.record.write_bytes(whole)
    try:
        found = read_record(paths)
    except FormatError:  # the flip made it look like a later format, which is refused as well
        return
    assert found is None or (found == RECORD and json.loads(bytes(whole)) == RECORD.to_json())


@pytest.mark.parametrize("size", range(0, len(encode_json(RECORD.to_json())) - 1, 17))
def test_a_record_that_was_cut_off_is_none(paths: CellPaths, size: int) -> None:
    paths.record.write_bytes(encode_json(RECORD.to_json())[:size])
    assert read_record(paths) is None


@pytest.mark.parametrize("text", ["[]", "3", "null", '"x"', "{}"])
def test_other_json_is_no_record(paths: CellPaths, text: str) -> None:
    paths.record.write_text(text)
    assert read_record(paths) is None


def test_a_record_with_unknown_fields_is_none_even_with_a_right_hash(paths: CellPaths) -> None:
    body = {**RECORD.to_json(), "new": 1}
    del body["sha256"]
    write_json(paths.record, {**body, "sha256": content_hash(body)})
    assert read_record(paths) is None


def test_a_record_of_another_cell_is_none(paths: CellPaths, tmp_path: Path) -> None:
    moved = CellPaths(tmp_path / "other")
    paths.root.rename(moved.root)
    assert read_record(moved) is None


def test_a_record_of_a_newer_format_is_refused_not_run_again(paths: CellPaths) -> None:
    write_json(paths.record, {**RECORD.to_json(), "format": FORMAT + 1})
    with pytest.raises(FormatError, match=r"record format 2 is newer than this nullarm reads; valid: up to 1"):
        read_record(paths)


def test_from_json_says_what_is_wrong(paths: CellPaths) -> None:
    with pytest.raises(IntegrityError, match="the record's hash does not agree; next: `nullarm resume`"):
        Record.from_json({**RECORD.to_json(), "attempt": 3}, paths.record)


def test_an_artefact_that_vanished_after_the_record_was_read_is_refused(paths: CellPaths) -> None:
    record = Record("cell", 1, "ok", {}, {"a": Artefact("artefacts/a.json", "0" * 64, 3)})
    with pytest.raises(IntegrityError, match="artefact 'a' of cell cell is not what its hash says"):
        FinishedCell(record, paths).artefact("a")
