"""What the commands do when all is well."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from nullarm.cli.execute import use_device
from nullarm.cli.options import Launch
from nullarm.cli.progress import ProgressView, duration
from nullarm.errors import UsageError
from nullarm.runner import RunState
from nullarm.sites import provenance
from nullarm.store.lease import Leases
from nullarm.store.study_store import StudyStore
from support.command import finished, nullarm, nullarm_process, on_a_terminal
from support.processes import PATIENCE_S, eventually
from support.rehearsals import finish, laid_down, write_study


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return write_study(tmp_path / "study.yaml")


def run(study: Path, root: Path, *more: str) -> dict[str, object]:
    outcome = nullarm("run", study, "--dir", root, "--engine", "inline", "--json", *more)
    assert outcome.code == 0, outcome.err
    found: dict[str, object] = outcome.json
    return found


def test_a_run_ends_with_verdict_report_and_tables(study: Path, tmp_path: Path) -> None:
    root = tmp_path / "run"
    found = run(study, root)
    assert (found["directory"], found["report"]) == (str(root), str(root / "report.html"))
    assert found["verdict"] in ("CONFIRMED", "INCONCLUSIVE")
    assert json.loads((root / "analysis.json").read_text())["verdict"] == found["verdict"]
    for name in ("report.html", "report.md", "manifest.csv", "tables/cells.parquet", "tables/items.parquet"):
        assert (root / name).stat().st_size > 0


def test_run_again_and_everything_is_done(study: Path, tmp_path: Path) -> None:
    first = run(study, tmp_path / "run")
    records = {path: path.read_bytes() for path in (tmp_path / "run").rglob("record.json")}
    again = nullarm("run", study, "--dir", tmp_path / "run", "--json")
    assert (again.code, again.err) == (0, "everything is done: no cell is open\n")
    assert again.json == first
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("record.json")} == records
    assert nullarm("resume", tmp_path / "run").err == "everything is done: no cell is open\n"


def test_a_run_for_people_prints_the_closing_block_and_the_report(study: Path, tmp_path: Path) -> None:
    outcome = nullarm("run", study, "--dir", tmp_path / "run", "--engine", "inline")
    assert outcome.out.startswith("effect: ")
    assert outcome.out.endswith(f"\nreport: {tmp_path}/run/report.html\n")
    assert "6/6 cells done" in outcome.err


def test_an_index_that_lies_is_not_believed(study: Path, tmp_path: Path) -> None:
    """The run looks at the records, not at the index, to see whether everything is done."""
    run(study, tmp_path / "run")
    with StudyStore.open(tmp_path / "run") as store:
        record = store.paths.cell(store.plan.cells[1].id).record
        record.write_bytes(record.read_bytes().replace(b'"attempt": 1', b'"attempt": 2'))
        assert {entry.state for entry in store.journal.entries()} == {"done"}
    assert "everything is done" not in nullarm("resume", tmp_path / "run", "--engine", "inline").err
    assert json.loads(record.read_text())["attempt"] == 2


def test_where_a_study_goes_when_nobody_says(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert nullarm("run", study, "--engine", "inline").code == 0
    assert (tmp_path / "runs" / "little" / "report.html").exists()
    monkeypatch.setenv("DEV_MODE", "1")
    smoke = nullarm("run", study, "--engine", "inline", "--json")
    assert smoke.code == 0
    assert smoke.json["verdict"] == "INVALID"
    assert "smoke run" in smoke.json["findings"][0]["reason"]
    assert (tmp_path / "runs" / "little-smoke" / "report.html").exists()


def test_overrides_and_profiles_reach_the_plan(study: Path) -> None:
    study.write_text(study.read_text() + "profiles: {one: {seeds: [5]}}\n")
    found = nullarm("plan", study, "--profile", "one", "--set", "parameters.items=7", "--json").json
    assert found["seeds"] == [5]
    assert {cell["parameters"]["items"] for cell in found["cells"]} == {7}


def test_a_plan_tells_everything_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = nullarm("plan", "rehearsal", "--json", "--at-once", "2").json
    assert (found["n_cells"], found["stages"], found["dependencies"]) == (30, {"prepare": 6, "measure": 24}, 24)
    assert found["least_attainable_p"] == {"effect": pytest.approx(4**-6)}
    assert 0 < found["minimum_detectable_effect"] < 0.2
    assert found["cells_at_once"] == 2
    assert found["estimated_seconds"] > 0
    assert found["estimated_disk_bytes"] > 0
    assert found["estimated_cost"] == 0
    assert len(found["cells"]) == 30
    assert list(tmp_path.iterdir()) == []


def test_a_plan_for_people(study: Path) -> None:
    text = nullarm("plan", study, "--device", "h100", "--cells").out
    for words in ("cells          6 (2 prepare, 4 measure), 4 dependencies, seeds [0, 1]", "least p        effect",
                  "detectable     unknown: set analysis.expected_sd", "on h100, 1 at once", "cost           about $0",
                  "seed 1 · sham"):  # fmt: skip
        assert words in text
    assert "no device 'h20' (did you mean 'h200'?)" in nullarm("plan", study, "--device", "h20").error


def test_the_schema_needs_no_study() -> None:
    assert nullarm("plan", "--schema").json["title"] == "nullarm study"


def test_status_in_numbers_and_for_people(tmp_path: Path) -> None:
    with laid_down(tmp_path / "run", {"parameters.fail": ["treated"]}) as store:
        finish(store, store.plan.cells[0])
        store.claim(store.plan.cells[3], Leases())
    found = nullarm("status", tmp_path / "run", "--json").json
    assert found["counts"] == {"done": 1, "running": 1, "pending": 4, "failed": 0, "blocked": 0}
    assert [cell["state"] for cell in found["cells"]] == ["done", "pending", "pending", "running", "pending", "pending"]
    text = nullarm("status", tmp_path / "run").out
    assert text.startswith("little: 1 done · 1 running · 4 pending\n")
    assert "running  " in text
    assert "seed 1 · prepare" in text


def test_logs_of_a_cell_by_id_or_label(study: Path, tmp_path: Path) -> None:
    run(study, tmp_path / "run")
    with StudyStore.open(tmp_path / "run") as store:
        cell = store.plan.cells[1]
    for name in (cell.id, cell.id[:8], "seed 0 · treated"):
        assert nullarm("logs", tmp_path / "run", name).out == "chunk items-0000\nchunk items-0001\n"
    assert nullarm("logs", tmp_path / "run", cell.id, "--follow").out == "chunk items-0000\nchunk items-0001\n"
    wrong = nullarm("logs", tmp_path / "run", "seed 0 · treatd")
    assert wrong.code == 2
    assert "is not a cell of this study (did you mean 'seed 0 · treated'?)" in wrong.error
    assert "'' is ambiguous" in nullarm("logs", tmp_path / "run", "").error


def test_analyze_and_report_read_what_is_there(study: Path, tmp_path: Path) -> None:
    found = run(study, tmp_path / "run")
    again = nullarm("analyze", tmp_path / "run", "--json")
    assert (again.code, again.json["verdict"]) == (0, found["verdict"])
    assert nullarm("analyze", tmp_path / "run").out.startswith("effect: ")
    (tmp_path / "run" / "report.html").unlink()
    assert nullarm("report", tmp_path / "run").out.split() == [
        str(tmp_path / "run" / f"report.{e}") for e in ("html", "md")
    ]
    assert (tmp_path / "run" / "report.html").exists()


def test_a_changed_analysis_is_told_as_exploratory(study: Path, tmp_path: Path) -> None:
    assert run(study, tmp_path / "run")["exploratory"] is False
    assert run(study, tmp_path / "run", "--set", "analysis.margin=0.01")["exploratory"] is True


def test_init_writes_a_study_that_can_be_planned(tmp_path: Path) -> None:
    target = tmp_path / "mine.yaml"
    assert nullarm("init", target, "--from", "rehearsal").out == f"wrote {target}; next: nullarm plan {target}\n"
    assert nullarm("plan", target).code == 0
    again = nullarm("init", target)
    assert again.code == 2
    assert "exists already; next: name another file" in again.error


def test_preflight_lists_its_checks(tmp_path: Path) -> None:
    outcome = nullarm("preflight", "rehearsal", "--dir", tmp_path, "--json")
    assert outcome.code == 0
    assert {check["name"] for check in outcome.json} >= {"study", "gpu", "memory", "disk", "cache"}
    assert "ok    disk" in nullarm("preflight", "rehearsal", "--dir", tmp_path).out


def test_a_detached_run_goes_on_by_itself(study: Path, tmp_path: Path) -> None:
    root = tmp_path / "run"
    with nullarm_process("run", study, "--dir", root, "--engine", "inline", "--detach") as process:
        outcome = finished(process, PATIENCE_S)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith("running in the background as process ")
    assert f"watch: nullarm status {root}" in outcome.out
    eventually((root / "report.md").exists, "the detached run to end")
    eventually(lambda: "report: " in (root / "run.log").read_text(), "its last words")
    assert nullarm("resume", root).err == "everything is done: no cell is open\n"


def test_progress_on_a_terminal_shows_what_runs(tmp_path: Path) -> None:
    study = write_study(tmp_path / "s.yaml", {"parameters.chunk_seconds": 1.0})
    written = on_a_terminal("run", str(study), "--dir", str(tmp_path / "run"), "--engine", "local", TERM="xterm")
    assert b"seed 0 \xc2\xb7 treated" in written
    assert b"1/2 chunks" in written
    assert b"cells done" in written
    assert b"report: " in written


def state(done: int, **more: object) -> RunState:
    facts: dict[str, object] = {
        "total": 10, "done": done, "failed": 1, "blocked": 2, "running": (("seed 0 · a", "1/2 chunks"),), "eta_s": 99.0,
        "cost": 1.5,
    }  # fmt: skip
    return RunState(**{**facts, **more})  # type: ignore[arg-type]


def test_progress_off_a_terminal_is_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressView() as view:
        view.show(state(3))
        view.show(state(4))
        view.show(state(9, stopping=True))
    assert capsys.readouterr().err.splitlines() == [
        "3/10 cells done · 1 running · 1 failed · 2 blocked · about 2 min left · $1.50 so far",
        "9/10 cells done · 1 running · 1 failed · 2 blocked · about 2 min left · $1.50 so far"
        " · stopping at a safe point, Ctrl-C kills",
    ]


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0 s"), (89, "89 s"), (90, "2 min"), (5399, "90 min"), (9000, "2.5 h")]
)
def test_a_length_of_time_for_people(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_entries_run_alone_and_a_damaged_cell_runs_again(study: Path, tmp_path: Path) -> None:
    root = tmp_path / "run"
    nullarm("run", study, "--dir", root, "--engine", "inline", "--entries", "sham")
    store = StudyStore.open(root)
    assert {cell.arm for cell in store.plan if store.finished(cell.id)} == {"sham", None}
    run(study, root)
    artefact = next(store.paths.cell(store.plan.cells[0].id).artefacts.iterdir())
    whole = artefact.read_bytes()
    artefact.write_bytes(whole[:-3] + b"99\n")
    outcome = nullarm("run", study, "--dir", root, "--engine", "inline", "--skip-existing")
    assert f"not skipped: {store.plan.cells[0].id}: artefact 'difficulty'" in outcome.err
    assert artefact.read_bytes() == whole


@pytest.mark.parametrize(
    ("name", "visible"), [("cpu", ""), ("cuda:0", "0"), ("cuda:1,3", "1,3"), ("cuda", "7"), ("tpu", None)]
)
def test_device_limits_what_workers_see(name: str, visible: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    monkeypatch.setattr(provenance, "gpus", lambda: ({"name": "H200"},) * 4)
    if visible is None:
        with pytest.raises(UsageError, match="--device names no device; got 'tpu'; valid: cpu, cuda, cuda:0, cuda:0,1"):
            use_device(name)
    else:
        use_device(name)
        assert os.environ["CUDA_VISIBLE_DEVICES"] == visible


def test_a_launch_is_the_same_as_words() -> None:
    launch = Launch("local", 2, "cuda:0", ("a", "b"), True)
    words = ["--engine", "local", "--at-once", "2", "--device", "cuda:0", "--entries", "a,b", "--skip-existing"]
    assert launch.words == words
    assert Launch("inline", None, None, (), False).words == ["--engine", "inline"]


@pytest.mark.parametrize("name", ["cuda", "cuda:2", "cuda:0,2"])
def test_a_gpu_that_is_not_here_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "gpus", lambda: ({"name": "H200"},) * (2 if ":" in name else 0))
    valid = "cpu, cuda:0, cuda:1" if ":" in name else "cpu"
    with pytest.raises(UsageError, match=rf"there is no such GPU on this machine; got '{name}'; valid: {valid}$"):
        use_device(name)


def test_a_study_for_gpus_runs_on_the_cpu_when_told_so(study: Path, tmp_path: Path) -> None:
    gpu = ("--set", "resources.gpus=1")
    refused = nullarm("run", study, "--dir", tmp_path / "a", *gpu)
    assert "a cell needs 1 GPU(s)" in refused.error
    assert nullarm("run", study, "--dir", tmp_path / "b", *gpu, "--device", "cpu").code == 0


def test_entries_that_name_nothing_or_no_arm_are_refused_before_anything_runs(study: Path, tmp_path: Path) -> None:
    outcome = nullarm("run", study, "--dir", tmp_path / "a", "--entries", "")
    assert (outcome.code, "--entries names no arm" in outcome.error) == (2, True)
    outcome = nullarm("run", study, "--dir", tmp_path / "a", "--entries", "shan", "--device", "cuda:7")
    assert "the study has no arm 'shan'" in outcome.error


def test_some_entries_are_no_failure(study: Path, tmp_path: Path) -> None:
    outcome = nullarm("run", study, "--dir", tmp_path / "run", "--engine", "inline", "--entries", "sham")
    assert outcome.code == 0
    assert f"2 cells are left for a later run: nullarm resume {tmp_path}/run" in outcome.err
