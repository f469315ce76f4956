"""The source's files and the closing block, of finished, failed, unfinished and rehearsed studies."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from math import exp
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
from low_rank_outcomes import TIMED, WEIGHTS, fail, finish, finish_all, outcome_store, session, tried_again
from low_rank_studies import low_rank_study, ran, the_cell

from nullarm.bench.blocks import judged
from nullarm.bench.runs import Run
from nullarm.bench.source_csv import read_runs
from nullarm.protocols.low_rank.analyse import analyse
from nullarm.protocols.low_rank.runbook.files import without_credentials, write_data
from nullarm.protocols.low_rank.runbook.outputs import write_cell, write_outputs
from nullarm.store.study_store import StudyStore
from nullarm.study.plan import Cell

TOKEN = "hf_" + "AbCdEf" * 5
SESSIONS = {"speed": session(0.05), "spec_speed": session(0.1), "rerun": session(0.002)}


@pytest.fixture
def store(tmp_path: Path) -> StudyStore:
    return outcome_store(tmp_path / "study")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> StudyStore:
    """A finished study whose files are written, for tests that only look at them."""
    store = outcome_store(tmp_path_factory.mktemp("outputs") / "study")
    finish_all(store, SESSIONS)
    closing(store)
    return store


def timed(store: StudyStore, contrast: str) -> Cell:
    return next(cell for cell in store.plan if cell.slice == contrast)


def closing(store: StudyStore) -> list[str]:
    return write_outputs(store, analyse(store)).splitlines()


def read(store: StudyStore, name: str) -> Any:
    return json.loads((store.paths.output / name).read_text(encoding="utf-8"))


def lines_of(store: StudyStore, name: str) -> list[dict[str, str]]:
    with open(store.paths.output / name, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def line(block: list[str], start: str) -> str:
    return next(one.strip() for one in block if one.strip().startswith(start))


def files(store: StudyStore) -> dict[str, bytes]:
    output = store.paths.output
    return {p.relative_to(output).as_posix(): p.read_bytes() for p in sorted(output.rglob("*")) if p.is_file()}


def contrast_runs(runs: list[Run]) -> list[Run]:
    return [run for run in runs if run.phase == "contrast"]


def test_a_finished_cell_writes_the_files_of_its_arm(store: StudyStore) -> None:
    cell = the_cell(store, "evaluate", "baseline")
    finish(store, cell)
    write_cell(store, cell)
    assert list(files(store)) == ["arms/baseline/log.txt", "arms/baseline/metrics.json"]
    log = (store.paths.output / "arms" / "baseline" / "log.txt").read_text(encoding="utf-8")
    assert log == f"== seed 0 · baseline · evaluate ({cell.id}): done\nchunk 0\n"
    (told,) = read(store, "arms/baseline/metrics.json")["cells"]
    assert (told["stage"], told["status"], told["metrics"]["token_perplexity"]) == ("evaluate", "done", exp(1.0))


def test_a_session_belongs_to_its_treatment_and_only_that_of_the_rerun_writes_the_sources_files(
    store: StudyStore,
) -> None:
    for contrast in ("speed", "rerun"):
        cell = timed(store, contrast)
        finish(store, cell)
        write_cell(store, cell)
        assert ("mcr_ablation.csv" in files(store)) == (contrast == "rerun")
    assert {name.split("/")[1] for name in files(store) if name.startswith("arms/")} == {"compress", "mcr"}
    stages = [cell["stage"] for cell in read(store, "arms/mcr/metrics.json")["cells"]]
    assert stages == ["compress", "evaluate", "measure"]


def test_what_serves_all_arms_writes_nothing(store: StudyStore) -> None:
    finish(store, the_cell(store, "spectra"))
    write_cell(store, the_cell(store, "spectra"))
    assert not store.paths.output.exists()


def test_the_sources_csv_has_the_believed_runs_of_the_contrast(whole: StudyStore) -> None:
    written = read_runs(whole.paths.output / "mcr_ablation.csv")
    tags = {"control": "baseline", "treatment": "mcr"}
    assert [(run.tag, run.tps) for run in written] == [
        (tags[r.arm], r.tokens_per_s) for r in contrast_runs(SESSIONS["rerun"])
    ]
    for tag in tags.values():
        assert [run.rep for run in written if run.tag == tag] == list(range(1, 21))
    assert {(run.duration_s, run.returncode) for run in written} == {(1.25, 0)}
    assert (whole.paths.output / "mcr_ablation.csv").read_text().startswith("tag,rep,tps,duration_s,returncode\n")


def test_the_sources_summary_has_the_sources_keys_with_the_sources_numbers(whole: StudyStore) -> None:
    runs = SESSIONS["rerun"]
    told = read(whole, "mcr_ablation_summary.json")
    speeds = {arm: [r.tokens_per_s for r in contrast_runs(runs) if r.arm == arm] for arm in ("control", "treatment")}
    for tag, values in (("baseline", speeds["control"]), ("mcr", speeds["treatment"])):
        assert told[tag] == {
            "n": 20, "mean": pytest.approx(fmean(values)), "stdev": pytest.approx(stdev(values)),
            "min": min(values), "max": max(values),
        }  # fmt: skip
    assert told["mcr_over_baseline"] == pytest.approx(fmean(speeds["treatment"]) / fmean(speeds["control"]))
    assert (told["model"], told["prompt"], told["n_decode"]) == ("builtin:world", "the", 2)
    assert told["arms"] == {"baseline": "compress", "mcr": "mcr"}
    assert told["sessions"]["rerun"]["session"] == "CLEAN"


def test_there_is_no_verdict_while_the_study_runs(store: StudyStore) -> None:
    finish(store, timed(store, "rerun"))
    write_cell(store, timed(store, "rerun"))
    assert read(store, "mcr_ablation_summary.json")["verdict"] is None
    finish_all(store, but=["rerun"])
    closing(store)
    assert read(store, "mcr_ablation_summary.json")["verdict"] == "EQUIVALENT"


def test_contaminated_attempts_are_kept_apart(store: StudyStore) -> None:
    runs = tried_again(tried_again(session(), 2, 1), 5, 2)
    finish_all(store, {"rerun": runs})
    closing(store)
    assert len(lines_of(store, "mcr_ablation.csv")) == 40
    assert len(lines_of(store, "mcr_ablation_run1_contaminated.csv")) == 8
    assert len(lines_of(store, "mcr_ablation_run2_contaminated.csv")) == 4
    second = [run.tokens_per_s for run in runs if (run.phase, run.block, run.attempt) == ("contrast", 5, 2)]
    assert [float(row["tps"]) for row in lines_of(store, "mcr_ablation_run2_contaminated.csv")] == second
    believed = [run.tokens_per_s for run in judged(runs) if run.phase == "contrast"]
    assert [float(row["tps"]) for row in lines_of(store, "mcr_ablation.csv")] == believed
    assert read(store, "mcr_ablation_summary.json")["rejected_runs"] == 12


def test_of_a_contaminated_session_no_run_is_believed(store: StudyStore) -> None:
    finish_all(store, {"rerun": session(again=0.03)})
    block = closing(store)
    assert lines_of(store, "mcr_ablation.csv") == []
    assert len(lines_of(store, "mcr_ablation_run1_contaminated.csv")) == 40
    told = read(store, "mcr_ablation_summary.json")
    assert told["baseline"] == {"n": 0, "mean": None, "stdev": None, "min": None, "max": None}
    assert (told["mcr_over_baseline"], told["verdict"]) == (None, "INVALID")
    said = line(block, "null re-run: mcr against compress is INVALID")
    assert "0 runs believed, 40 rejected" in said
    assert said.endswith("The session is contaminated: its numbers show neither a difference nor a null.")
    assert line(block, "rerun: CONTAMINATED; A/A DIFFERENT (+3")
    assert line(block, "· A/A differs: the control against itself")


def test_arms_of_the_same_weights_are_no_null(store: StudyStore) -> None:
    finish_all(store, weights={**WEIGHTS, "mcr": WEIGHTS["compress"]})
    assert "mcr against compress is NO_OP" in line(closing(store), "null re-run:")
    assert read(store, "mcr_ablation_summary.json")["verdict"] == "NO_OP"


def test_files_that_an_earlier_plan_left_are_removed(store: StudyStore) -> None:
    finish_all(store)
    closing(store)
    left = store.paths.output / "mcr_ablation_run7_contaminated.csv"
    left.write_text("tag,rep,tps\n", encoding="utf-8")
    closing(store)
    assert not left.exists()
    assert (store.paths.output / "mcr_ablation.csv").exists()


def test_without_a_null_rerun_there_are_none_of_its_files(tmp_path: Path) -> None:
    store = outcome_store(tmp_path / "study", rerun=None)
    finish_all(store)
    assert "null re-run: none, for `parameters.rerun` names no contrast." in closing(store)
    assert not [name for name in files(store) if name.startswith("mcr")]


def test_sessions_of_all_seeds_are_in_one_file(tmp_path: Path) -> None:
    store = outcome_store(tmp_path / "study", seeds=(0, 1))
    finish_all(store)
    block = closing(store)
    assert [row["rep"] for row in lines_of(store, "mcr_ablation.csv") if row["tag"] == "mcr"][-1] == "40"
    assert set(read(store, "mcr_ablation_summary.json")["sessions"]) == {"rerun, seed 0", "rerun, seed 1"}
    assert line(block, "compress, seed 1 ")
    assert line(block, "rerun, seed 1: CLEAN")


def test_the_closing_block(whole: StudyStore) -> None:
    block = closing(whole)
    assert block[0] == "LOW RANK"
    compress = line(block, "compress ").split("  ")
    assert [part.strip() for part in compress if part][:2] == ["compress", "600 B (60.0%)"]
    assert "PPL 3.0802 [" in line(block, "compress ")
    assert WEIGHTS["compress"][:12] in line(block, "compress ")
    assert "tok/s 1.05" in line(block, "compress ")
    assert line(block, "compress ").endswith("of baseline")
    assert line(block, "baseline ").endswith("not timed")
    spec = line(block, "spec (drafts with compress): acceptance 0.750, α 0.875, 3.25 tokens a round;")
    assert "speed-up 1.125 predicted from the prompts, 1.375 predicted from the timed runs, 1.10" in spec
    assert spec.endswith("of baseline measured; 3 of 3 texts equal greedy decoding")
    assert line(block, "speed: CLEAN; A/A EQUIVALENT (")
    assert "positive control DIFFERENT (-4." in line(block, "speed: CLEAN")
    assert "tok/s ratio 1.00" in line(block, "null re-run: mcr against compress is")
    assert line(block, "speed (compress against baseline): DIFFERENT. ")
    assert line(block, "cost (compress against baseline): DIFFERENT. ")
    assert f"wrote {whole.paths.output / 'mcr_ablation_summary.json'}" in block
    assert block[-1] == f"logs of 4 arms: {whole.paths.output / 'arms'}"
    text = (whole.paths.output / "summary.txt").read_text(encoding="utf-8")
    assert text.splitlines() == block[: text.count("\n")]
    assert "wrote" not in text


def test_the_summary_has_the_numbers_behind_the_block(whole: StudyStore) -> None:
    told = read(whole, "summary.json")
    assert (told["plan_hash"], told["smoke"], told["failures"], told["unfinished"]) == (whole.plan.hash, False, {}, [])
    compress = next(arm for arm in told["arms"] if arm["arm"] == "compress")
    assert (compress["bytes"], compress["slot_bytes"], compress["share_kept"]) == (5000, 600, 0.6)
    assert compress["perplexity"]["token"] == exp(1.125)
    ends = compress["perplexity"]["token_interval"]
    assert ends["low"] < exp(1.125) < ends["high"]
    assert compress["hashes"] == {"weights": "b" * 64, "logits": "d" * 64}
    assert compress["tokens_per_s_ratio"]["ratio"] == pytest.approx(exp(0.05), abs=1e-3)
    assert compress["tokens_per_s_ratio"]["control"] == "baseline"
    assert set(compress["verdicts"]) == {"cost", "speed", "rerun"}
    assert told["verdicts"]["speed"]["verdict"] == compress["verdicts"]["speed"] == "DIFFERENT"
    (spec,) = told["speculation"]
    assert (spec["acceptance"], spec["predicted_speed_up"], spec["settings"]["drafter"]) == (0.75, 1.125, "compress")
    assert spec["measured_speed_up"]["contrast"] == "spec_speed"
    assert spec["timed_runs"] == TIMED
    assert [s["judgement"]["session"] for s in told["sessions"]] == ["CLEAN"] * 3


def test_a_failed_arm_is_named_with_its_reason(store: StudyStore) -> None:
    failed = the_cell(store, "compress", "mcr")
    fail(store, failed)
    finish_all(store, but=["mcr", "rerun"])
    block = closing(store)
    why = "FAILED at compress: ModelError: no weights"
    assert line(block, "mcr ").removeprefix("mcr").strip() == why
    assert f"rerun: {why}" == line(block, "rerun:")
    assert line(block, "null re-run:") == f"null re-run: mcr against compress was not timed, {why}."
    told = read(store, "summary.json")
    assert told["failures"] == {"seed 0 · mcr · compress": "ModelError: no weights"}
    mcr = next(arm for arm in told["arms"] if arm["arm"] == "mcr")
    assert mcr["status"] == why
    assert "perplexity" not in mcr
    assert told["verdicts"]["rerun"]["verdict"] == "INVALID"
    log = (store.paths.output / "arms" / "mcr" / "log.txt").read_text(encoding="utf-8")
    assert f"== seed 0 · mcr · compress ({failed.id}): {why}" in log
    assert not (store.paths.output / "mcr_ablation.csv").exists()


def test_an_arm_that_ended_with_a_finding_has_failed_too(store: StudyStore) -> None:
    finish(store, the_cell(store, "evaluate", "compress"), outcome="invalid", reason="a likelihood is no number")
    block = closing(store)
    assert line(block, "compress ").endswith("FAILED at evaluate: a likelihood is no number")


def test_failed_speculation_and_spectra_are_named(store: StudyStore) -> None:
    fail(store, the_cell(store, "spectra"), "no room")
    fail(store, the_cell(store, "speculate", "spec"), "no draft")
    block = closing(store)
    assert line(block, "spec: ") == "spec: FAILED at speculate: ModelError: no draft"
    assert line(block, "seed 0 · spectra: ") == "seed 0 · spectra: FAILED at spectra: ModelError: no room"


def test_nothing_begun_has_no_numbers(store: StudyStore) -> None:
    block = closing(store)
    assert [one.split()[-3:] for one in block[3:7]] == [["not", "run", "yet"]] * 4
    assert line(block, "null re-run:").endswith("was not timed, not run yet.")
    told = read(store, "summary.json")
    assert len(told["unfinished"]) == len(store.plan)
    assert {arm["status"] for arm in told["arms"]} == {"not run yet"}
    assert not any("bytes" in arm for arm in told["arms"])
    assert (store.paths.output / "env.txt").read_text() == "# 0 finished cells\n"
    assert [name for name in files(store) if name.startswith("mcr")] == []


def test_a_smoke_run_says_so(tmp_path: Path) -> None:
    store = outcome_store(tmp_path / "study", smoke=True)
    finish_all(store)
    block = closing(store)
    assert block[0] == "LOW RANK (a smoke run: none of this is evidence)"
    assert line(block, "null re-run:").endswith("This is a smoke run, which never enters a verdict.")
    assert read(store, "mcr_ablation_summary.json")["verdict"] == "INVALID"
    assert (read(store, "summary.json")["smoke"], read(store, "meta.json")["smoke"]) == (True, True)


def test_an_analysis_that_was_changed_says_so(store: StudyStore) -> None:
    block = write_outputs(store, replace(analyse(store), exploratory=True)).splitlines()
    assert block[1] == "EXPLORATORY: the analysis was changed after cells had run"
    assert read(store, "summary.json")["exploratory"] is True


def test_tolerances_that_are_kept(whole: StudyStore) -> None:
    block = closing(whole)
    assert "kept in all of 4 comparisons" in line(block, "throughput, ±5%: ")
    told = "equal to 4 decimals on one device: kept in all of 1 comparisons; furthest off: baseline and spec, 0"
    assert line(block, "perplexity, ") == f"perplexity, {told}"
    assert "kept in all of 1 comparisons" in line(block, "variance ratio, up to 1.5 when clean, above 5 contaminated: ")
    told = read(whole, "summary.json")["tolerances"]
    assert told["source"]["throughput"] == "±5%"
    assert all(check["kept"] for check in told["checks"])


def test_tolerances_that_are_not_kept(store: StudyStore) -> None:
    runs = session(sd=0.0005)
    spread = [
        replace(run, tokens_per_s=run.tokens_per_s * (1.02 if i % 3 else 0.97)) if run.arm == "treatment" else run
        for i, run in enumerate(contrast_runs(runs))
    ]
    finish_all(
        store,
        {"speed": session(again=0.08), "rerun": [*spread, *(run for run in runs if run.phase != "contrast")]},
        nll={"baseline": 1.0, "spec": 1.0001, "compress": 1.1, "mcr": 1.1},
    )
    block = closing(store)
    assert "NOT KEPT in 1 of 3 comparisons; furthest off: baseline against itself in speed, +8." in line(
        block, "throughput,"
    )
    assert "NOT KEPT in 1 of 1 comparisons; furthest off: baseline and spec, 0.0003" in line(block, "perplexity,")
    assert "CONTAMINATED by the source's rule, SUSPECT by ours" in line(block, "variance ratio,")


def test_what_was_measured_once_is_not_checked(store: StudyStore) -> None:
    told = line(closing(store), "perplexity,")
    assert told.endswith("not checked, for nothing that may be believed was measured twice")


def test_without_a_gpu_there_are_no_samples(whole: StudyStore) -> None:
    header = "session,run,started_s,sm_clock_mhz,memory_clock_mhz,temperature_c,power_w,memory_used_bytes,throttle\n"
    assert (whole.paths.output / "gpu_query.csv").read_text() == header


def test_samples_of_a_gpu_that_is_there(store: StudyStore) -> None:
    seen = {
        "sm_clock_mhz": 1980.0, "memory_clock_mhz": 2619.0, "temperature_c": 61.0, "power_w": 312.5,
        "memory_used_bytes": 3 << 29, "throttle": "power cap",
    }  # fmt: skip
    runs = [replace(run, **seen) for run in session()]  # type: ignore[arg-type]
    finish_all(store, {"speed": runs})
    closing(store)
    rows = lines_of(store, "gpu_query.csv")
    assert len(rows) == len(runs)
    assert rows[1] == {
        "session": "speed", "run": "1", "started_s": "2.0", "sm_clock_mhz": "1980.0", "memory_clock_mhz": "2619.0",
        "temperature_c": "61.0", "power_w": "312.5", "memory_used_bytes": "1610612736", "throttle": "power cap",
    }  # fmt: skip


def test_the_environment_tells_machines_apart(store: StudyStore) -> None:
    finish_all(store, but=["baseline"])
    finish(store, the_cell(store, "evaluate", "baseline"), provenance={"python": "3.12.1", "host": "other"})
    closing(store)
    told = (store.paths.output / "env.txt").read_text().splitlines()
    done = len(store.plan)
    assert told[0] == f"# {done} finished cells"
    assert f"python: 3.11.7 ({done - 1} cells); 3.12.1 (1 cells)" in told
    assert {"packages.torch: 2.13.0", "gpus: none", "system: Linux"} <= set(told)


def test_what_was_asked_is_in_meta(store: StudyStore) -> None:
    analysis = analyse(store)
    write_outputs(store, analysis)
    told = read(store, "meta.json")
    assert (told["study"], told["plan_hash"], told["analysis_hash"]) == (
        "small",
        store.plan.hash,
        analysis.analysis_hash,
    )
    assert told["content_ids"]["model"].startswith("builtin:world@")
    assert told["arms"]["baseline"]["role"] == "reference"
    assert told["arms"]["compress"]["method"] == {"kind": "grc"}
    assert (told["settings"]["rerun"], told["settings"]["model"]) == ("rerun", "builtin:world")


def test_written_twice_files_are_the_same(store: StudyStore) -> None:
    finish_all(store, {"rerun": tried_again(session(), 2, 1)})
    closing(store)
    before = files(store)
    closing(store)
    assert files(store) == before
    assert len(before) == 5 + 3 + 8


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        (f"export HF_TOKEN={TOKEN} done", "export HF_TOKEN=[hidden] done"),
        (f"sent {TOKEN}.", "sent [hidden]."),
        ("AWS_SECRET_ACCESS_KEY: ab/cd+ef", "AWS_SECRET_ACCESS_KEY: [hidden]"),
        ("'WANDB_API_KEY': '0123abc'", "'WANDB_API_KEY': '[hidden]'"),
        ("Authorization: Bearer ab.cd", "Authorization: Bearer [hidden]"),
        ("https://me:word@host/x?X-Amz-Signature=ab&b=1", "https://[hidden]@host/x?X-Amz-Signature=[hidden]&b=1"),
        ("ghp_0123456789abcdefghij AKIA0123456789ABCDEF", "[hidden] [hidden]"),
    ],
)
def test_what_looks_like_a_credential_is_hidden(text: str, hidden: str) -> None:
    assert without_credentials(text) == hidden


@pytest.mark.parametrize(
    "text",
    ["TOKENIZERS_PARALLELISM=false", "calibration_tokens=262144", "tokens: 48", "Meta-Llama-3.1-8B-Instruct@main"],
)
def test_what_does_not_look_like_one_stays(text: str) -> None:
    assert without_credentials(text) == text


def test_credentials_are_hidden_within_data(tmp_path: Path) -> None:
    path = write_data(tmp_path / "a.json", {"reasons": [f"line\nHF_TOKEN={TOKEN}\nline"], "n": 1})
    assert json.loads(path.read_text()) == {"reasons": ["line\nHF_TOKEN=[hidden]\nline"], "n": 1}


def test_a_token_that_a_library_printed_is_in_no_file_and_not_in_the_block(store: StudyStore) -> None:
    """The source's launcher printed its token into the log that was then pulled."""
    fail(store, the_cell(store, "compress", "mcr"), f"401 for https://hub/x?token={TOKEN}")
    finish_all(store, but=["mcr", "rerun"], printed=f"login with {TOKEN}\n")
    block = write_outputs(store, analyse(store))
    assert TOKEN not in block
    assert "FAILED at compress: ModelError: 401 for https://hub/x?token=[hidden]" in block
    assert not [name for name, data in files(store).items() if TOKEN.encode() in data]
    assert b"login with [hidden]" in files(store)["arms/compress/log.txt"]


def test_secrets_of_the_environment_reach_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = {name: f"{name.lower()}-{n}-s3cr3t" for n, name in enumerate(("HF_TOKEN", "AWS_SECRET_ACCESS_KEY"))}
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    store = ran(tmp_path / "study", low_rank_study(evaluation_tokens=128))
    for cell in store.plan:
        write_cell(store, cell)
    block = write_outputs(store, analyse(store))
    written = [path for path in store.paths.root.rglob("*") if path.is_file()]
    assert len(written) > len(files(store)) > 8
    for value in secrets.values():
        assert value not in block
        assert not [path for path in written if value.encode() in path.read_bytes()]
