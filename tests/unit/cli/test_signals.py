"""Ctrl-C and SIGTERM leave a study that can be resumed, and nothing running."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from support.command import finished, nullarm, nullarm_process
from support.processes import PATIENCE_S, eventually, workers_of
from support.rehearsals import write_study

SLOW = {"parameters.chunks": 100, "parameters.items": 100, "parameters.chunk_seconds": 0.05}


def chunks(root: Path) -> int:
    return len(list(root.glob("cells/*/chunks/*")))


@pytest.mark.parametrize("engine", ["local", "inline"])
@pytest.mark.parametrize(
    ("number", "code", "words"),
    [
        (signal.SIGINT, 130, "error: interrupted; what was committed is kept; next: nullarm resume"),
        (signal.SIGTERM, 75, "error: asked to stop; next: nullarm resume"),
        (signal.SIGUSR1, 75, "error: asked to stop; next: nullarm resume"),
    ],
)
def test_a_signal_stops_the_run_at_a_safe_point(
    tmp_path: Path, engine: str, number: signal.Signals, code: int, words: str
) -> None:
    root = tmp_path / "run"
    study = write_study(tmp_path / "s.yaml", SLOW)
    with nullarm_process("run", study, "--dir", root, "--engine", engine, "--at-once", "2") as process:
        eventually(lambda: chunks(root) > 2, "some chunks")
        process.send_signal(number)
        outcome = finished(process, PATIENCE_S)
    assert (outcome.code, outcome.out) == (code, "")
    assert f"{words} {root}" in outcome.error
    assert workers_of(root) == []
    kept = chunks(root)
    counts = nullarm("status", root, "--json").json["counts"]
    assert counts["running"] == counts["failed"] == 0
    assert counts["pending"] > 0
    nullarm("resume", root, "--engine", "inline", "--set", "x=1")  # a usage error must not touch anything
    assert chunks(root) == kept


def test_an_interrupted_study_ends_like_one_that_was_not(tmp_path: Path) -> None:
    study = write_study(tmp_path / "s.yaml", {**SLOW, "parameters.chunks": 20})
    root = tmp_path / "run"
    with nullarm_process("run", study, "--dir", root, "--at-once", "2") as process:
        eventually(lambda: chunks(root) > 5, "some chunks")
        process.send_signal(signal.SIGINT)
        assert finished(process, PATIENCE_S).code == 130
    assert nullarm("resume", root, "--at-once", "2").code == 0
    assert nullarm("run", study, "--dir", tmp_path / "smooth", "--engine", "inline").code == 0
    for name in ("cells.parquet", "items.parquet"):
        assert (root / "tables" / name).read_bytes() == (tmp_path / "smooth" / "tables" / name).read_bytes()


def test_a_second_ctrl_c_kills_what_does_not_stop(tmp_path: Path) -> None:
    changes = {
        "protocol": "support.misbehaving:Misbehaving",
        "factors": {"arm": {"hangs": {}, "sham": {"role": "control", "null": "nothing"}}},
        "analysis.contrasts": [{"name": "e", "treatment": "hangs", "control": "sham", "primary": True}],
        "parameters.chunk_seconds": 0.01,
    }
    root = tmp_path / "run"
    tests = str(Path(__file__).parents[2])
    study = write_study(tmp_path / "s.yaml", changes)
    with nullarm_process("run", study, "--dir", root, "--at-once", "2", PYTHONPATH=tests) as process:
        hanging = f"{root}/cells/*/log.txt"
        eventually(lambda: len(list(root.glob("cells/*/log.txt"))) >= 4, hanging)
        eventually(lambda: len(workers_of(root)) == 2, "two workers")
        process.send_signal(signal.SIGINT)
        eventually(lambda: nullarm("status", root, "--json").json["counts"]["running"] > 0, "the store to be readable")
        process.send_signal(signal.SIGINT)
        outcome = finished(process, PATIENCE_S)
    assert outcome.code == 130
    assert workers_of(root) == []
    assert nullarm("status", root, "--json").json["counts"]["running"] == 0
