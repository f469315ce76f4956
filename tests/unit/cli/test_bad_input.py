"""Bad input ends in one line with culprit, value, valid choices and next command, and in the exit code of its kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

from nullarm.cli import main
from nullarm.store.study_store import StudyStore
from support.command import Outcome, nullarm
from support.disks import little_disk
from support.rehearsals import finish, laid_down, write_study

RANK_MECHANISM: dict[str, Any] = {
    "name": "little",
    "question": "Do audited ranks beat shuffled ones?",
    "protocol": "rank_mechanism",
    "parameters": {
        "model": "builtin:world",
        "task": {"kind": "world_relations"},
        "probe_rank": 8,
        "alpha": 16,
        "training": {"steps": 2, "batch_size": 2, "learning_rate": 0.001},
        "allocation": {"allowed_ranks": [1, 2, 4, 8]},
    },
    "factors": {
        "arm": {"audited": {}, "shuffled": {"role": "control", "null": "ranks do not matter", "replicates": 3}},
    },
    "seeds": [0, 1, 2, 3, 4, 5],
    "analysis": {
        "metric": "accuracy",
        "margin": 0.05,
        "contrasts": [
            {"name": "mechanism", "treatment": "audited", "control": "shuffled", "primary": True,
             "test": "within_seed_randomisation"}
        ],
    },
}  # fmt: skip


def rank_mechanism(path: Path, **parameters: Any) -> Path:
    path.write_text(yaml.safe_dump({**RANK_MECHANISM, "parameters": {**RANK_MECHANISM["parameters"], **parameters}}))
    return path


def refused(outcome: Outcome, code: int, *words: str) -> None:
    """Check that a command ended with `code` and one line that has all the words."""
    assert outcome.code == code, outcome.err
    for part in words:
        assert part in outcome.error
    assert outcome.out == ""


def test_an_unknown_key(tmp_path: Path) -> None:
    study = write_study(tmp_path / "s.yaml", {"analysis.alhpa": 0.1})
    line = study.read_text().splitlines().index("  alhpa: 0.1") + 1
    refused(
        nullarm("plan", study), 2, f"{study}:{line}: unknown key 'analysis.alhpa' (did you mean 'alpha'?)",
        "valid: alpha, contrasts, expected_sd", f"next: correct it, then `nullarm plan {study}`",
    )  # fmt: skip


def test_an_unknown_parameter_of_the_protocol(tmp_path: Path) -> None:
    refused(
        nullarm("plan", write_study(tmp_path / "s.yaml", {"parameters.itms": 3})), 2,
        "unknown key 'parameters.itms' (did you mean 'items'?)", "valid: chunk_seconds, chunks, effects,",
    )  # fmt: skip


def test_an_unknown_protocol_or_arm(tmp_path: Path) -> None:
    study = write_study(tmp_path / "s.yaml", {"protocol": "rehersal"})
    refused(
        nullarm("plan", study),
        2,
        "no protocol 'rehersal' (did you mean 'rehearsal'?); valid: kv_communication, low_rank, rank_mechanism,",
    )
    study = write_study(tmp_path / "s.yaml", {"protocol": "nowhere:Protocol"})
    refused(nullarm("plan", study), 2, "cannot import protocol 'nowhere:Protocol'")
    study = write_study(tmp_path / "s.yaml", {"protocol": "pathlib:Path"})
    refused(nullarm("plan", study), 2, "'pathlib:Path' is not a nullarm Protocol")


def test_a_seed_list_with_duplicates(tmp_path: Path) -> None:
    study = write_study(tmp_path / "s.yaml", {"seeds": [4, 1, 4]})
    refused(nullarm("run", study), 2, "seeds: seeds repeat: [4]; each seed must occur once; got [4, 1, 4]")
    refused(nullarm("plan", "rehearsal", "--set", "seeds=[1,1]"), 2, "--set seeds: seeds: seeds repeat: [1]")


def test_ranks_that_do_not_divide(tmp_path: Path) -> None:
    study = rank_mechanism(tmp_path / "s.yaml", allocation={"allowed_ranks": [1, 3, 8]})
    refused(nullarm("plan", study), 2, "allowed_ranks: 3 does not divide probe_rank 8; valid: [1, 2, 4, 8]")


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("./nowhere", "the model directory is missing; got './nowhere'; valid: builtin:NAME"),
        ("builtin:wrold", "(did you mean 'world'?); got 'builtin:wrold'; valid: builtin:word-receiver"),
        ("world", "there is no such model (did you mean 'builtin:world'?); got 'world'"),
    ],
)
def test_a_missing_model(tmp_path: Path, model: str, words: str) -> None:
    refused(nullarm("plan", rank_mechanism(tmp_path / "s.yaml", model=model)), 10, words)


def test_a_directory_without_a_model(tmp_path: Path) -> None:
    study = rank_mechanism(tmp_path / "s.yaml", model=str(tmp_path))
    refused(nullarm("plan", study), 10, "the model directory has no config.json", f"next: ls {tmp_path}")


@pytest.mark.parametrize(
    ("line", "words"),
    [("", "empty"), ('{"prompt": "a"}\n', "completion"), ("{", "line 1 is not JSON")],
    ids=["empty", "key", "json"],
)
def test_an_empty_or_malformed_dataset(tmp_path: Path, line: str, words: str) -> None:
    files = {split: str(tmp_path / f"{split}.jsonl") for split in ("train", "dev", "test")}
    for path in files.values():
        Path(path).write_text(line)
    study = rank_mechanism(tmp_path / "s.yaml", task={"kind": "jsonl", **files})
    refused(nullarm("plan", study), 15, words, ".jsonl")


def test_a_dataset_that_is_not_there(tmp_path: Path) -> None:
    task = {"kind": "jsonl", "train": "no.jsonl", "dev": "no.jsonl", "test": "no.jsonl"}
    refused(nullarm("plan", rank_mechanism(tmp_path / "s.yaml", task=task)), 15, "no.jsonl")
    refused(nullarm("plan", rank_mechanism(tmp_path / "s.yaml", task={"kind": "gsm9k"})), 15, "(did you mean 'gsm8k'?)")


def test_an_adapter_without_b(tmp_path: Path) -> None:
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    weights = {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": np.ones((2, 4), np.float32)}
    save_file(weights, tmp_path / "adapter_model.safetensors")
    refused(nullarm("audit", tmp_path), 14, "lora_B", "q_proj")


def test_a_directory_that_is_no_adapter(tmp_path: Path) -> None:
    refused(nullarm("audit", tmp_path), 14, "adapter_config.json")


def test_a_study_directory_of_another_study(tmp_path: Path) -> None:
    laid_down(tmp_path / "run").close()
    refused(
        nullarm("run", "rehearsal", "--dir", tmp_path / "run"), 11, "holds another study; got 'little (rehearsal)'",
        "valid: rehearsal (rehearsal)", "next: choose another directory with `--dir`",
    )  # fmt: skip


def test_a_newer_format(tmp_path: Path) -> None:
    study = write_study(tmp_path / "s.yaml", {"format": 2})
    refused(nullarm("plan", study), 12, "study format 2 is newer", "next: pip install --upgrade nullarm")
    laid_down(tmp_path / "run").close()
    lock = tmp_path / "run" / "study.lock.yaml"
    lock.write_text(lock.read_text().replace("format: 1", "format: 2", 1))
    for command in ("status", "resume", "analyze", "report"):
        refused(nullarm(command, tmp_path / "run"), 12, "study directory format 2 is newer", "valid: up to 1")


def test_a_full_disk_and_after_it(tmp_path: Path) -> None:
    study = write_study(tmp_path / "s.yaml")
    with little_disk(tmp_path / "disk", size_kib=64 * 1024) as disk:
        root = disk.root / "run"
        assert nullarm("run", study, "--dir", root, "--engine", "inline").code == 0
        with StudyStore.open(root) as store:
            store.paths.cell(store.plan.cells[1].id).record.unlink()
        disk.fill()
        outcome = nullarm("resume", root, "--engine", "inline")
        assert outcome.code == 13
        assert "is full; next: free space on" in outcome.error
        status = nullarm("status", root, "--json")
        assert (status.code, status.json["counts"]["done"]) == (0, 5)
        disk.free()
        assert nullarm("resume", root, "--engine", "inline").code == 0
        with StudyStore.open(root) as store:
            assert all(store.finished(cell.id) for cell in store.plan)


def test_a_read_only_disk(tmp_path: Path) -> None:
    with little_disk(tmp_path / "disk") as disk:
        disk.make_read_only()
        outcome = nullarm("run", "rehearsal", "--dir", disk.root / "run", "--engine", "inline")
        refused(outcome, 13, "the file system is read-only; next: choose another directory with `--dir`")


@pytest.mark.parametrize("command", ["status", "resume", "analyze", "report"])
def test_what_is_no_study_directory(tmp_path: Path, command: str) -> None:
    refused(
        nullarm(command, tmp_path / "none"), 2, "is not a study directory", "next: `nullarm run STUDY.yaml` makes one"
    )


def test_a_damaged_study_directory(tmp_path: Path) -> None:
    laid_down(tmp_path / "run").close()
    (tmp_path / "run" / "plan.json").write_text("[")
    refused(nullarm("resume", tmp_path / "run"), 8, "plan.json is damaged", "next: lay the study down again")


def test_a_missing_study_file(tmp_path: Path) -> None:
    refused(nullarm("plan", tmp_path / "no.yaml"), 2, "no study file", "valid: a path to a YAML file, ", "nullarm init")


@pytest.mark.parametrize("text", [b"a: [", b"\xff", b"- 1", b"a: 1\na: 2"])
def test_a_file_that_is_no_study(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "s.yaml").write_bytes(text)
    refused(nullarm("plan", tmp_path / "s.yaml"), 2, f"{tmp_path}/s.yaml")


def test_a_study_that_cannot_answer_its_question(tmp_path: Path) -> None:
    outcome = nullarm("run", "rehearsal", "--set", "seeds=[1]", "--dir", tmp_path / "run")
    refused(outcome, 2, "cannot answer its question", "add seeds or replicates and look again with `nullarm plan`")
    assert not (tmp_path / "run").exists()


def test_a_machine_that_is_not_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    outcome = nullarm("preflight", "rehearsal", "--set", "resources.gpus=1", "--dir", tmp_path)
    assert outcome.code == 3
    assert "1 check(s) failed: gpu: 0 found" in outcome.error
    assert "FAIL  gpu" in outcome.out


def test_cells_that_fail(tmp_path: Path) -> None:
    study = write_study(tmp_path / "s.yaml", {"parameters.fail": ["treated"]})
    outcome = nullarm("run", study, "--dir", tmp_path / "run", "--engine", "inline")
    assert outcome.code == 4
    assert "error: 2 cell(s) failed, the first: " in outcome.err
    assert "RuntimeError: arm treated was asked to fail; next: `nullarm logs " in outcome.err.splitlines()[-1]


def test_a_probe_below_its_gate(tmp_path: Path) -> None:
    changes = {
        "protocol": "support.misbehaving:Misbehaving",
        "factors": {"arm": {"undertrained": {}, "sham": {"role": "control", "null": "nothing"}}},
        "analysis.contrasts": [{"name": "e", "treatment": "undertrained", "control": "sham", "primary": True}],
    }
    study = write_study(tmp_path / "s.yaml", changes)
    outcome = nullarm("run", study, "--dir", tmp_path / "run", "--engine", "inline")
    assert outcome.code == 9
    assert "accuracy 0.1 is below 0.6; next: train longer, or lower the gate" in outcome.err.splitlines()[-1]


def test_no_valid_answer(tmp_path: Path) -> None:
    with laid_down(tmp_path / "run") as store:
        finish(store, store.plan.cells[0])
    outcome = nullarm("analyze", tmp_path / "run")
    assert outcome.code == 5
    assert "5 of 6 cells are not finished, the first: seed 0 · treated" in outcome.error


def test_no_verdict_where_one_is_required(tmp_path: Path) -> None:
    study = write_study(tmp_path / "s.yaml", {"parameters.effects": {}})
    arguments = ("run", study, "--dir", tmp_path / "run", "--engine", "inline")
    assert nullarm(*arguments).code == 0
    outcome = nullarm(*arguments, "--require-verdict")
    assert outcome.code == 6
    assert "error: the primary contrast 'effect' is INCONCLUSIVE" in outcome.error


def test_a_limit_that_is_reached(tmp_path: Path) -> None:
    study = write_study(tmp_path / "s.yaml", {"budget.max_runtime_h": 1e-12})
    outcome = nullarm("run", study, "--dir", tmp_path / "run", "--engine", "inline")
    assert outcome.code == 7
    assert "budget.max_runtime_h is reached" in outcome.err.splitlines()[-1]


def test_an_error_of_our_own_is_one_line_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def burst(path: object) -> None:
        raise RuntimeError("two\nlines")

    monkeypatch.setattr("nullarm.study.shipped.study_path", burst)
    monkeypatch.delenv("NULLARM_TRACEBACK", raising=False)
    refused(
        nullarm("init", tmp_path / "s.yaml"), 1, "internal error: RuntimeError: two lines; next: again with NULLARM_TR"
    )
    monkeypatch.setenv("NULLARM_TRACEBACK", "1")
    monkeypatch.setattr("sys.argv", ["nullarm", "init", str(tmp_path / "s.yaml")])
    with pytest.raises(RuntimeError, match="two"):
        main()
