"""The manifest: a line per planned capture, whatever became of it."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from nullarm.protocols.residual.export.manifest import COLUMNS, write_manifest
from nullarm.protocols.residual.export.write import write_json
from nullarm.protocols.residual.runs import multi_pass
from nullarm.store.atomic import make_directory
from nullarm.store.cell import Failure, write_failure
from nullarm.store.files import sha256_path
from nullarm.store.lease import Leases
from nullarm.store.study_store import StudyStore
from nullarm.study.plan import Cell, make_plan
from support.captures import capture_store, finish_capture

HUB = {"base": "hub:org/little@main", "sft": "builtin:sft", "prompts": "prompts:0"}


def lines(path: Path) -> dict[str, dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return {row["entry"]: row for row in csv.DictReader(file)}


def fail(store: StudyStore, cell: Cell, kind: str, message: str) -> None:
    leases = Leases()
    lease = store.claim(cell, leases)
    assert lease is not None
    write_failure(store.paths.cell(cell.id), Failure(lease.attempt, kind, message, 1))
    leases.release(store.paths.cell(cell.id))
    store.observe(cell.id)


def test_a_capture_with_its_file(tmp_path: Path) -> None:
    with capture_store(tmp_path / "study", passes=multi_pass()) as store:
        (cell,) = store.plan
        finished = finish_capture(store, cell, passes=multi_pass())
        store.paths.cell(cell.id).log.write_text("words")
        json_path, _ = write_json(finished, store.paths.output / "little")
        path = write_manifest(store, {cell.id: json_path})
    assert path == tmp_path / "study" / "output" / "manifest.csv"
    assert lines(path) == {
        "little": {
            "timestamp": "2026-01-02T03:04:05",
            "entry": "little",
            "seed": "0",
            "replicate": "",
            "status": "success",
            "reason": "",
            "prompt_count": "2",
            "prompt_variants": "identity;mirror_halves",
            "multi_pass": "true",
            "json_path": "output/little/multi_pass_20260102_030405_little.json",
            "log_path": f"cells/{cell.id}/log.txt",
            "sha256": sha256_path(json_path),
        }
    }


def test_captures_of_one_arm_differ_in_seed_and_replicate(tmp_path: Path) -> None:
    with capture_store(tmp_path / "one") as store:
        (one,) = store.plan
    cells = [one, replace(one, seed=3), replace(one, seed=3, replicate=1), replace(one, seed=3, replicate=2)]
    with StudyStore.create(tmp_path / "four", store.lock.study, make_plan(cells)) as store:
        path = write_manifest(store, {})
    with open(path, newline="", encoding="utf-8") as file:
        found = [(row["entry"], row["seed"], row["replicate"]) for row in csv.DictReader(file)]
    assert found == [("little", "0", ""), ("little", "3", ""), ("little", "3", "1"), ("little", "3", "2")]


def test_every_field_is_quoted(tmp_path: Path) -> None:
    with capture_store(tmp_path, ("a", "b")) as store:
        finish_capture(store, next(iter(store.plan)))
        text = write_manifest(store, {}).read_text()
    head, *rows = text.splitlines()
    assert head == ",".join(f'"{name}"' for name in COLUMNS)
    assert len(rows) == 2
    assert all(row.startswith('"') and row.endswith('"') and row.count('","') == len(COLUMNS) - 1 for row in rows)


def test_a_capture_without_its_file(tmp_path: Path) -> None:
    with capture_store(tmp_path, ("off", "gone")) as store:
        off, gone = store.plan
        for cell in (off, gone):
            finish_capture(store, cell)
        found = lines(write_manifest(store, {gone.id: store.paths.output / "x.json"}))
    assert (found["off"]["status"], found["off"]["reason"]) == ("missing-json", "no JSON was written")
    assert (found["gone"]["status"], found["gone"]["reason"]) == ("missing-json", "output/x.json is not there")
    assert {row["json_path"] + row["sha256"] for row in found.values()} == {""}


def test_a_capture_that_is_not_valid_has_failed(tmp_path: Path) -> None:
    with capture_store(tmp_path) as store:
        (cell,) = store.plan
        finish_capture(store, cell, outcome="invalid")
        found = lines(write_manifest(store, {}))["little"]
    assert (found["status"], found["reason"]) == ("failed", "the null is not null")


@pytest.mark.parametrize(
    ("inputs", "kind", "status"),
    [
        (HUB, "ModelError", "download-failed"),
        (HUB, "OutOfMemoryError", "failed"),
        (None, "ModelError", "failed"),
    ],
)
def test_a_capture_that_failed_says_why(tmp_path: Path, inputs: dict[str, str] | None, kind: str, status: str) -> None:
    with capture_store(tmp_path, inputs=inputs) as store:
        (cell,) = store.plan
        fail(store, cell, kind, 'no "space", or so')
        found = lines(write_manifest(store, {}))["little"]
    assert (found["status"], found["reason"]) == (status, f'{kind}: no "space", or so')
    assert found["timestamp"].startswith("20")


def test_a_capture_that_was_not_run_is_pending(tmp_path: Path) -> None:
    with capture_store(tmp_path, ("waits", "runs")) as store:
        _, running = store.plan
        store.claim(running, Leases())
        found = lines(write_manifest(store, {}))
    assert {name: (row["status"], row["reason"]) for name, row in found.items()} == {
        "waits": ("pending", ""), "runs": ("pending", "running"),
    }  # fmt: skip
    assert {row["timestamp"] + row["sha256"] + row["log_path"] for row in found.values()} == {""}


def test_a_failure_that_was_overcome_is_forgotten(tmp_path: Path) -> None:
    with capture_store(tmp_path) as store:
        (cell,) = store.plan
        fail(store, cell, "OutOfMemoryError", "too large")
        json_path = write_json(finish_capture(store, cell), store.paths.output)[0]
        found = lines(write_manifest(store, {cell.id: json_path}))["little"]
    assert (found["status"], found["reason"]) == ("success", "")


def test_a_file_outside_of_the_study_keeps_its_whole_path(tmp_path: Path) -> None:
    with capture_store(tmp_path / "study") as store:
        (cell,) = store.plan
        json_path = write_json(finish_capture(store, cell), tmp_path / "elsewhere")[0]
        found = lines(write_manifest(store, {cell.id: json_path}))["little"]
    assert found["json_path"] == str(json_path)


def test_an_interrupted_write_leaves_the_old_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with capture_store(tmp_path) as store:
        path = write_manifest(store, {})
        before = path.read_bytes()
        finish_capture(store, next(iter(store.plan)))
        make_directory(path.parent)

        def stop(*paths: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("os.replace", stop)
        with pytest.raises(KeyboardInterrupt):
            write_manifest(store, {})
    assert path.read_bytes() == before
