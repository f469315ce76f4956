"""The source's output tree, manifests, and closing block."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from nullarm.analysis import analyse
from nullarm.protocols.kv_communication.budget.tags import run_directory
from nullarm.protocols.kv_communication.parameters import Allocation, Channel
from nullarm.protocols.kv_communication.runbook.outputs import write_cell, write_outputs
from nullarm.protocols.kv_communication.runbook.state import state_of
from nullarm.protocols.kv_communication.runbook.tree import write_tree
from nullarm.store.cell import Failure, write_failure
from nullarm.store.lease import BEAT_TIMEOUT_S, Leases
from nullarm.store.study_store import StudyStore
from nullarm.study.plan import Cell
from support.communications import ARMS, CHUNK, FakeArm, N, begin, communication_store, finish, finish_all
from support.rehearsals import writer_of

FOLDERS = ["configs", "logs", "manifests", "progress", "results"]


def cell_of(store: StudyStore, arm: str) -> Cell:
    return next(cell for cell in store.plan if cell.arm == arm)


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture
def store(tmp_path: Path) -> StudyStore:
    return communication_store(tmp_path / "study")


@pytest.mark.parametrize(
    ("channel", "directory"),
    [
        (Channel(via="receiver"), "step_0_baselines/step0_little"),
        (Channel(), "step_0_baselines/step0_little"),
        (Channel(codec="int8"), "step_1_kv_ptq/step1_int8_little"),
        (Channel(codec="int8", proportion=0.5, order="back"), "step_1_kv_ptq/step3_int8_p0p5_back_little"),
        (Channel(codec="int4", allocation=Allocation(mean_bits=3)), "step_1_kv_ptq/step5_other_little"),
    ],
)
def test_run_directories_have_the_sources_names(tmp_path: Path, channel: Channel, directory: str) -> None:
    arms = {"first": FakeArm(Channel(via="sharer"), lambda i: True), "other": FakeArm(channel, lambda i: True)}
    assert run_directory(cell_of(communication_store(tmp_path / "study", arms), "other")) == directory


def test_a_finished_cell_writes_its_run(store: StudyStore) -> None:
    cell = cell_of(store, "int8")
    finish(store, cell, ARMS["int8"])
    write_cell(store, cell)
    run = store.paths.output / "step_1_kv_ptq" / "step1_int8_little"
    assert [path.name for path in store.paths.output.iterdir()] == ["step_1_kv_ptq"]
    assert sorted(path.name for path in run.iterdir()) == FOLDERS
    summary = read(run / "results" / "words_summary.json")
    assert {key: summary[key] for key in ("status", "accuracy", "correct", "total", "errors", "chunks")} == {
        "status": "complete", "accuracy": 0.9, "correct": 36, "total": N, "errors": 0, "chunks": 2,
    }  # fmt: skip
    assert summary["bytes_per_sequence"] == 4000.0
    assert summary["accuracy_low"] < 0.9 < summary["accuracy_high"]
    assert read(run / "configs" / "words.json")["settings"]["channel"]["codec"] == "int8"
    assert (run / "logs" / "words.log").read_text(encoding="utf-8") == "Eval words: [0, 25)\n"
    assert read(run / "manifests" / "run_manifest.json")["status"] == "complete"
    assert read(run / "manifests" / "env_info.json") == {"python": "3.11"}
    assert read(run / "manifests" / "step_1_manifest.json")["arms"]["int8"]["codec"]["bits"] == 8


def test_progress_has_every_chunk_in_order(store: StudyStore) -> None:
    cell = cell_of(store, "int8")
    finish(store, cell, ARMS["int8"])
    write_cell(store, cell)
    path = store.paths.output / run_directory(cell) / "progress" / "words_chunks.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [(line["start"], line["end"], line["total"]) for line in lines] == [(0, 25, N), (25, N, N)]
    assert all(line["timestamp"].endswith("+00:00") for line in lines)


def test_arms_of_one_run_tag_have_directories_of_their_own(store: StudyStore) -> None:
    for arm in ("receiver", "c2c"):
        finish(store, cell_of(store, arm), ARMS[arm])
        write_cell(store, cell_of(store, arm))
    run = store.paths.output / "step_0_baselines" / "step0_little"
    assert read(run / "results" / "receiver" / "seed_0" / "words_summary.json")["accuracy"] == 0.25
    assert read(run / "results" / "c2c" / "seed_0" / "words_summary.json")["accuracy"] == 0.9
    manifest = read(run / "manifests" / "run_manifest.json")
    assert (manifest["run_tag"], manifest["status"]) == ("step0_little", "incomplete")
    assert manifest["cells"]["seed 0 · text · words"] == "prep_only"
    assert read(run / "manifests" / "step_0_checkpoint_manifest.json")["inputs"] == {
        "receiver": "sha:1", "sharer:big": "sha:2",
    }  # fmt: skip


def test_a_finished_cell_writes_nothing_of_others(store: StudyStore) -> None:
    for arm in ("receiver", "c2c"):
        finish(store, cell_of(store, arm), ARMS[arm])
    write_cell(store, cell_of(store, "c2c"))
    run = store.paths.output / "step_0_baselines" / "step0_little"
    assert sorted(path.name for path in (run / "results").iterdir()) == ["c2c"]
    write_tree(store)
    assert read(run / "results" / "receiver" / "seed_0" / "words_summary.json")["accuracy"] == 0.25
    assert read(run / "results" / "text" / "seed_0" / "words_summary.json")["status"] == "prep_only"


def test_chunks_of_another_size_that_are_left_over_are_not_told(store: StudyStore) -> None:
    cell = cell_of(store, "int8")
    begin(store, cell, ARMS["int8"], until=32, chunk=16)
    finish(store, cell, ARMS["int8"])
    write_cell(store, cell)
    run = store.paths.output / run_directory(cell)
    text = (run / "progress" / "words_chunks.jsonl").read_text(encoding="utf-8")
    assert [(line["start"], line["end"]) for line in map(json.loads, text.splitlines())] == [(0, CHUNK), (CHUNK, N)]
    assert read(run / "results" / "words_summary.json")["chunks"] == 2


def test_of_two_whole_tilings_that_of_the_last_chunks_is_told(store: StudyStore) -> None:
    cell = cell_of(store, "int8")
    begin(store, cell, ARMS["int8"], until=N, chunk=10)
    finish(store, cell, ARMS["int8"])
    write_cell(store, cell)
    assert read(store.paths.output / run_directory(cell) / "results" / "words_summary.json")["chunks"] == 2


def test_a_cell_that_was_preempted_has_begun(store: StudyStore) -> None:
    cell = cell_of(store, "int8")
    begin(store, cell, ARMS["int8"], until=CHUNK)
    assert state_of(store, cell) == ("incomplete", None)


def test_a_cell_is_running_while_its_owner_lives(store: StudyStore) -> None:
    cell = cell_of(store, "int8")
    paths = writer_of(store, cell).paths
    assert state_of(store, cell) == ("running", None)
    lease = read(paths.lease)
    lease["owner"]["started"] -= 1  # another process of this id, long gone
    paths.lease.write_text(json.dumps(lease), encoding="utf-8")
    assert state_of(store, cell) == ("incomplete", None)


def test_an_owner_elsewhere_is_at_work_while_it_is_heard_of(store: StudyStore) -> None:
    cell = cell_of(store, "int8")
    paths = writer_of(store, cell).paths
    lease = read(paths.lease)
    lease["owner"]["host"] = "elsewhere"
    paths.lease.write_text(json.dumps(lease), encoding="utf-8")
    assert state_of(store, cell) == ("running", None)
    long_ago = paths.lease.stat().st_mtime - 2 * BEAT_TIMEOUT_S
    os.utime(paths.lease, (long_ago, long_ago))
    assert state_of(store, cell) == ("incomplete", None)


def test_a_failure_of_an_earlier_attempt_is_history(store: StudyStore) -> None:
    cell = cell_of(store, "int8")
    leases = Leases()
    lease = store.claim(cell, leases)
    assert lease is not None
    write_failure(store.paths.cell(cell.id), Failure(lease.attempt, "ModelError", "no weights", 10))
    leases.release_all()
    assert state_of(store, cell) == ("failed", "ModelError: no weights")
    begin(store, cell, ARMS["int8"], until=CHUNK)
    assert state_of(store, cell) == ("incomplete", None)


def test_a_damaged_lease_says_so(store: StudyStore) -> None:
    cell = cell_of(store, "int8")
    paths = writer_of(store, cell).paths
    paths.lease.write_text("{", encoding="utf-8")
    status, reason = state_of(store, cell)
    assert status == "failed"
    assert "lease.json is damaged" in str(reason)


def test_nothing_begun_is_prepared_only(store: StudyStore) -> None:
    for run in write_tree(store):
        assert read(run / "manifests" / "run_manifest.json")["status"] == "prep_only"
        assert read(run / "manifests" / "env_info.json") == {}


def test_a_failed_cell_says_failed_and_never_nought(store: StudyStore) -> None:
    cell = cell_of(store, "int8")
    writer = writer_of(store, cell)
    write_failure(writer.paths, Failure(writer.attempt, "ModelError", "no weights", 10))
    write_cell(store, cell)
    run = store.paths.output / run_directory(cell)
    assert read(run / "manifests" / "run_manifest.json")["status"] == "failed"
    summary = read(run / "results" / "words_summary.json")
    assert (summary["status"], summary["reason"], summary["accuracy"]) == ("failed", "ModelError: no weights", None)


def test_an_invalid_cell_has_failed_too(store: StudyStore) -> None:
    cell = cell_of(store, "int8")
    finish(store, cell, ARMS["int8"], outcome="invalid", reason="9 of 40 items ended in an error")
    write_cell(store, cell)
    summary = read(store.paths.output / run_directory(cell) / "results" / "words_summary.json")
    assert (summary["status"], summary["accuracy"]) == ("failed", None)


def test_the_closing_block(store: StudyStore) -> None:
    finish_all(store, but=["int4", "text"])
    cell = cell_of(store, "int4")
    writer = writer_of(store, cell)
    write_failure(writer.paths, Failure(writer.attempt, "ModelError", "no weights", 10))
    block = write_outputs(store, analyse(store, ("evaluate",))).splitlines()
    assert block[:3] == ["KV COMMUNICATION", "", "words (accuracy, 95 % interval, bytes an item)"]
    c2c = next(line for line in block if line.startswith("  c2c"))
    assert c2c.split() == ["c2c", "0.900", "[0.769,", "0.960]", "8,000", "n", "=", "40"]
    assert "seed 0 · int4 · words: FAILED (ModelError: no weights)" in block
    assert "not evaluated yet: seed 0 · text · words" in block
    assert any(line.startswith("help (sharer against receiver): INVALID.") for line in block)
    assert f"wrote {store.paths.output / 'budget_curve.csv'}" in block
    assert f"wrote {store.paths.output / 'budget_curve_words.png'}" in block
    assert block[-1] == f"runs: 5 under {store.paths.output}"
    for name in ("budget_curve.csv", "budget_curve_words.png"):
        assert (store.paths.output / name).stat().st_size > 0


@pytest.mark.parametrize("open_streams", [0, 3])
def test_fusers_with_all_gates_closed_are_named(tmp_path: Path, open_streams: int) -> None:
    store = communication_store(tmp_path / "study", train=True)
    finish(store, next(iter(store.plan)), None, open_streams=open_streams)
    said = "fuser default, seed 0: all gates are closed, so nothing is sent through it"
    assert (said in write_outputs(store, analyse(store, ("evaluate",))).splitlines()) == (open_streams == 0)


def test_training_and_calibration_write_no_run(tmp_path: Path) -> None:
    store = communication_store(tmp_path / "study", calibrate=True)
    cell = next(cell for cell in store.plan if cell.stage == "calibrate")
    finish(store, cell, None)
    write_cell(store, cell)
    assert not store.paths.output.exists()
