"""`nullarm kv` as people call it."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from nullarm.protocols.kv_communication.runbook.options import RunbookOptions
from nullarm.protocols.kv_communication.runbook.overrides import overrides
from nullarm.store.study_store import read_lock
from nullarm.study.load import load_study
from support.command import Outcome, nullarm
from support.communications import communication_store, finish_all
from support.rehearsals import laid_down, writer_of

NAMES = (
    *(f"RUN_MILESTONE_{n}" for n in range(6)), "C2C_CKPT_ROOT", "CHUNK_SIZE", "EVAL_SMOKE",
    "SMOKE_LIMIT", "RUN_TAG_PREFIX", "M3_KV_QUANT_SCHEME", "M3_PROPORTIONS", "M3_ORDER_MODES", "DRY_RUN", "PREFLIGHT",
    "SKIP_DONE", "FORCE_RERUN", "DEV_MODE",
)  # fmt: skip
STUDY: dict[str, Any] = {
    "name": "few_bytes",
    "question": "How few bytes will do?",
    "protocol": "kv_communication",
    "parameters": {
        "receiver": "builtin:world",
        "sharers": {"chat": "builtin:world-chat"},
        "fusers": {"trained": {"sharer": "chat", "training": {"steps": 2, "batch_size": 1, "learning_rate": 0.1}}},
        "channels": {"receiver_only": {"via": "receiver"}, "c2c": {}, "int4": {"codec": "int4"}},
        "grid": {"codecs": ["int8"], "proportions": [1.0, 0.5], "orders": ["front", "back"]},
        "tasks": [{"kind": "world_relations"}],
    },
    "factors": {"channel": {"receiver_only": {}, "c2c": {}, "int4": {}}},
    "seeds": [0],
    "analysis": {
        "metric": "accuracy",
        "margin": 0.05,
        "contrasts": [
            {"name": "help", "treatment": "c2c", "control": "receiver_only", "test": "paired_items", "primary": True}
        ],
    },
}


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / "few_bytes.yaml"
    path.write_text(yaml.safe_dump(STUDY, sort_keys=False), encoding="utf-8")
    return path


def said(study: Path, **options: Any) -> dict[str, Any]:
    pairs = (pair.partition("=") for pair in overrides(RunbookOptions(**options), load_study(study)))
    return {key: json.loads(value) for key, _, value in pairs}


def prepared(study: Path, *arguments: object) -> Outcome:
    """Lay down the study, and run nothing."""
    return nullarm("kv", "run", study, "--prep-only", "--no-preflight", *arguments)


def parameters(directory: str = "runs/few_bytes") -> dict[str, Any]:
    return read_lock(Path(directory)).study.parameters


def test_options_are_settings_of_the_study(study: Path) -> None:
    assert said(study, base_model="org/a", teacher_model="org/b", checkpoint_dir="/fuser") == {
        "parameters.receiver": "org/a",
        "parameters.sharers.chat": "org/b",
        "parameters.fusers.trained": {"sharer": "chat", "directory": "/fuser"},
    }  # fmt: skip
    assert said(study, eval_smoke=True, smoke_limit=7, chunk_size=5, max_new_tokens=9, run_tag_prefix="x") == {
        "smoke": True, "parameters.limit": 7, "parameters.chunk_size": 5, "parameters.max_new_tokens": 9,
        "parameters.run_tag_prefix": "x",
    }  # fmt: skip
    assert said(study, m3_kv_quant_scheme="int4", m3_proportions=(1.0, 0.1), m3_order_modes=("back",)) == {
        "parameters.grid.codecs": ["int4"], "parameters.grid.proportions": [1.0, 0.1],
        "parameters.grid.orders": ["back"],
    }  # fmt: skip


def test_the_sources_codec_with_another_axis(study: Path) -> None:
    found = said(study, kv_quant_scheme="int4", kv_quant_axis="layer", kv_quant_eps=1e-5)
    assert found["parameters.codecs.int4"] == {"kind": "symmetric", "bits": 4, "axis": "layer", "eps": 1e-5}


@pytest.mark.parametrize(
    ("asked", "milestones"),
    [
        ({0: True}, [0, 1]),
        ({0: True, 3: True, 2: False}, [0, 1, 3]),
        ({5: False}, [0, 1, 2, 3]),
        ({1: True}, [0, 1, 2, 3, 5]),
        ({1: False}, [0, 2, 3, 5]),
        ({1: False, 3: True}, [3]),
    ],
)
def test_milestones(study: Path, asked: dict[int, bool], milestones: list[int]) -> None:
    pairs = tuple((number, asked.get(number)) for number in (0, 1, 2, 3, 5))
    assert said(study, milestones=pairs) == {"parameters.milestones": milestones}


def test_without_any_milestone_there_is_nothing_to_run(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (0, 2, 3, 5):
        monkeypatch.setenv(f"RUN_MILESTONE_{number}", "0")
    outcome = prepared(study)
    assert outcome.code == 2
    assert "no milestone is left to run; got 'RUN_MILESTONE_0=0 RUN_MILESTONE_2=0 " in outcome.error
    assert "valid: RUN_MILESTONE_0=1, RUN_MILESTONE_2=1, RUN_MILESTONE_3=1, RUN_MILESTONE_5=1" in outcome.error


def test_budget_curves_need_not_be_asked_for(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUN_MILESTONE_4", "1")
    outcome = prepared(study)
    assert outcome.code == 0
    assert outcome.err == "milestone 4 is always there: budget curves are drawn from whatever was run\n"
    assert "milestones" not in parameters()


def test_statistics_may_be_asked_for_and_refused(study: Path) -> None:
    assert prepared(study, "--no-run-milestone-1").code == 0
    assert parameters()["milestones"] == [0, 2, 3, 5]
    assert prepared(study, "--force-rerun", "--kv-quant-collect-stats", "--kv-quant-scheme", "int4").code == 0
    assert parameters()["milestones"] == [0, 1, 2]


def test_an_axis_alone_is_the_quantised_run(study: Path) -> None:
    axis = {"kind": "symmetric", "bits": 8, "axis": "layer"}
    assert said(study, kv_quant_axis="layer") == {
        "parameters.codecs.int8": axis, "parameters.milestones": [0, 2],
        "parameters.grid": {"codecs": ["int8"], "proportions": [1.0], "orders": ["front"]},
    }  # fmt: skip
    for further in ({"m3_kv_quant_scheme": "int8"}, {"milestones": ((3, True),)}):
        found = said(study, kv_quant_axis="layer", **further)
        assert found["parameters.codecs.int8"] == axis
        assert "parameters.grid" not in found


def test_one_run_of_a_codec_that_the_study_names(study: Path) -> None:
    outcome = prepared(
        study, "--set", "parameters.codecs.tight={kind: nf4, group: 16}", "--kv-quant-scheme", "tight",
    )  # fmt: skip
    assert (outcome.code, outcome.err) == (0, "")
    assert parameters()["milestones"] == [0, 2]


def test_checkpoints_are_looked_for_under_their_root(study: Path, tmp_path: Path) -> None:
    for folder in ("mine", "pair/final"):
        (tmp_path / "root" / folder).mkdir(parents=True)
    root = tmp_path / "root"
    fusers = 'parameters.fusers.{}={{sharer: chat, directory: "hf:org/repository/pair/{}"}}'
    found = {"checkpoint_root": root, "checkpoint_dir": "mine"}
    assert said(study, **found)["parameters.fusers.trained"]["directory"] == str(root / "mine")
    assert said(study, **found | {"checkpoint_dir": "other"})["parameters.fusers.trained"]["directory"] == "other"
    published = load_study(study, overrides=[fusers.format("b", "final@main"), fusers.format("c", "elsewhere")])
    assert overrides(RunbookOptions(checkpoint_root=root), published) == [
        f'parameters.fusers.b.directory="{root}/pair/final"',
    ]  # fmt: skip
    assert overrides(RunbookOptions(), published) == []


def test_a_checkpoint_leaves_nothing_of_the_training(study: Path, tmp_path: Path) -> None:
    shape = "parameters.fusers.trained.shape={hidden_dim: 8}"
    (tmp_path / "fuser").mkdir()
    asked = load_study(study, overrides=[shape])
    pairs = overrides(RunbookOptions(checkpoint_dir="fuser"), asked)
    found = load_study(study, overrides=[shape, *pairs]).parameters["fusers"]["trained"]
    assert found == {"sharer": "chat", "directory": "fuser"}


def test_json_and_a_verdict_that_is_required_are_passed_on(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    monkeypatch.setattr("nullarm.cli.run.execute", lambda store, launch, **more: started.append(more))
    outcome = nullarm("kv", "run", study, "--json", "--require-verdict")
    assert (outcome.code, outcome.out) == (0, "")
    assert started == [{"require_verdict": True, "as_json": True}]
    assert nullarm("kv", "run", study, "--json", "--dry-run").json["study"] == "few_bytes"


def test_the_help_says_what_the_milestones_are() -> None:
    shown = " ".join(nullarm("kv", "run", "--help").out.split())
    for words in ("Milestone 0: baselines", "Milestone 1: statistics", "Milestone 4: budget curves, which are always"):
        assert words in shown


def test_environment_names_work(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "RUN_MILESTONE_0": "1", "RUN_MILESTONE_2": "0", "RUN_MILESTONE_3": "1", "CHUNK_SIZE": "13", "EVAL_SMOKE": "1",
        "SMOKE_LIMIT": "6", "RUN_TAG_PREFIX": "mine", "M3_KV_QUANT_SCHEME": "int4", "M3_PROPORTIONS": "1.0 0.25",
        "M3_ORDER_MODES": "back", "PREFLIGHT": "0",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    outcome = nullarm("kv", "run", study, "--prep-only")
    assert (outcome.code, outcome.err) == (0, "")
    found = parameters("runs/few_bytes-smoke")
    assert {key: found[key] for key in ("milestones", "chunk_size", "limit", "run_tag_prefix", "grid")} == {
        "milestones": [0, 1, 3], "chunk_size": 13, "limit": 6, "run_tag_prefix": "mine",
        "grid": {"codecs": ["int4"], "proportions": [1.0, 0.25], "orders": ["back"]},
    }  # fmt: skip
    assert read_lock(Path("runs/few_bytes-smoke")).study.smoke


def test_settings_of_the_command_line_come_last(study: Path) -> None:
    assert prepared(study, "--chunk-size", 5, "--set", "parameters.chunk_size=6").code == 0
    assert parameters()["chunk_size"] == 6


def test_prep_only_lays_down_the_tree(study: Path) -> None:
    outcome = prepared(study)
    assert (outcome.code, outcome.err) == (0, "")
    runs = sorted(line.removeprefix("prepared runs/few_bytes/output/") for line in outcome.out.splitlines())
    assert runs == [
        "step_0_baselines/step0_few_bytes", "step_1_kv_ptq/step1_int4_few_bytes", "step_1_kv_ptq/step1_int8_few_bytes",
        "step_1_kv_ptq/step3_int8_p0p5_back_few_bytes", "step_1_kv_ptq/step3_int8_p0p5_front_few_bytes",
    ]  # fmt: skip
    manifest = Path("runs/few_bytes/output") / runs[0] / "manifests" / "run_manifest.json"
    assert json.loads(manifest.read_text(encoding="utf-8"))["status"] == "prep_only"


def test_a_dry_run_shows_the_plan_and_leaves_nothing(study: Path) -> None:
    outcome = nullarm("kv", "run", study, "--dry-run")
    assert outcome.out.startswith("few_bytes: How few bytes will do?")
    assert "seed 0 · int8_p0p5_back" in outcome.out
    assert "study      valid, and can reach its α" in outcome.out
    assert not Path("runs").exists()


def test_one_run_is_its_channel_beside_the_baselines(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    monkeypatch.setattr("nullarm.cli.run.execute", lambda store, launch, **more: started.append((store, launch)))
    outcome = nullarm(
        "kv", "run", study, "--no-preflight", "--kv-quant-scheme", "int8", "--kv-cache-proportion", 0.25,
        "--kv-cache-order-mode", "back",
    )  # fmt: skip
    assert (outcome.code, outcome.err) == (0, "")
    ((store, launch),) = started
    assert launch.entries == ("receiver_only", "c2c", "int8_p0p25_back")
    assert {cell.arm for cell in store.plan if cell.arm} == set(launch.entries)


def test_one_run_of_a_channel_that_the_study_has(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    monkeypatch.setattr("nullarm.cli.run.execute", lambda store, launch, **more: started.append(launch))
    assert nullarm("kv", "run", study, "--no-preflight", "--kv-quant-scheme", "int4").code == 0
    assert nullarm("kv", "run", study, "--no-preflight", "--disable-kv-quant").code == 0
    assert [launch.entries for launch in started] == [("receiver_only", "c2c", "int4"), ("receiver_only", "c2c")]


def test_a_rerun_moves_the_old_directory_aside(study: Path) -> None:
    for arguments in ((), ("--force-rerun",), ("--no-skip-done",)):
        outcome = prepared(study, *arguments)
        assert outcome.code == 0
    assert outcome.err == "moved aside: runs/few_bytes.before-2\n"
    assert sorted(path.name for path in Path("runs").iterdir()) == [
        "few_bytes", "few_bytes.before-1", "few_bytes.before-2",
    ]  # fmt: skip


def test_a_directory_that_is_being_run_stays_where_it_is(study: Path, tmp_path: Path) -> None:
    with laid_down(tmp_path / "busy") as store:
        writer_of(store, next(iter(store.plan)))
    outcome = prepared(study, "--force-rerun", "--dir", tmp_path / "busy")
    assert outcome.code == 2
    assert "busy is being run: seed 0" in outcome.error
    assert (tmp_path / "busy").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--disable-kv-quant", "--kv-quant-scheme", "int8"), "--disable-kv-quant and --kv-quant-scheme exclude"),
        (("--kv-quant-scheme", "fp16", "--kv-quant-axis", "head"), "got 'fp16'; valid: int8, int4"),
        (
            ("--kv-quant-scheme", "int3"),
            "--kv-quant-scheme is no codec of few_bytes (did you mean 'int8'?); got 'int3'; "
            "valid: fp32, bf16, fp16, int8, int4",
        ),
        (("--m3-kv-quant-scheme", "int3"), "--m3-kv-quant-scheme is no codec of few_bytes"),
        (
            ("--m3-proportions", "1,0"),
            "'--m3-proportions' (env var: 'M3_PROPORTIONS'): got '0'; valid: numbers above 0, up to 1",
        ),
        (("--m3-proportions", "nan"), "got 'nan'; valid: numbers above 0"),
        (
            ("--m3-order-modes", "back,up"),
            "'--m3-order-modes' (env var: 'M3_ORDER_MODES'): got 'up'; valid: front, back, middle",
        ),
        (("--run-tag-prefix", "../../evil"), "got '../../evil'; valid: a letter, then letters"),
        (
            ("--checkpoint-root", "nowhere"),
            "'--checkpoint-root' (env var: 'C2C_CKPT_ROOT'): Directory 'nowhere' does not exist",
        ),
        (
            ("--kv-cache-order-mode", "sideways", "--kv-cache-proportion", 0.5),
            "'sideways' is not one of 'front', 'back'",
        ),
        (("--kv-cache-proportion", 0), "0 is not in the range 0<x<=1"),
        (
            ("--m3-proportions", "1,half"),
            "'--m3-proportions' (env var: 'M3_PROPORTIONS'): got 'half'; valid: numbers above 0",
        ),
        (("--kv-quant-axis", "token"), "'token' is not one of 'head', 'layer'"),
    ],
)
def test_a_mistake_is_one_line(study: Path, arguments: tuple[object, ...], words: str) -> None:
    outcome = prepared(study, *arguments)
    assert outcome.code == 2
    assert words in outcome.error


def test_a_budget_curve_of_several_studies(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with communication_store(tmp_path / name, datasets=(f"words_{name}",)) as store:
            finish_all(store)
    arguments = ("--runs-root", tmp_path / "a", "--runs-root", tmp_path / "b", "--output-dir", tmp_path / "out")
    outcome = nullarm("kv", "budget-curve", *arguments)
    assert (outcome.code, outcome.err) == (0, "")
    names = ["budget_curve.csv", "budget_curve_words_a.png", "budget_curve_words_b.png"]
    assert outcome.out == "".join(f"wrote {tmp_path / 'out' / name}\n" for name in names)
    with (tmp_path / "out" / names[0]).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["run_root"].split("/")[-4] for row in rows} == {"a", "b"}
    outcome = nullarm("kv", "budget-curve", *arguments[:2], *arguments[4:], "--assume-input-length", 40, "--no-plot")
    assert outcome.out == f"wrote {tmp_path / 'out' / names[0]}\n"
    with (tmp_path / "out" / names[0]).open(encoding="utf-8", newline="") as file:
        c2c = next(row for row in csv.DictReader(file) if row["arm"] == "c2c")
    assert (c2c["bytes_per_sequence"], c2c["measured_bytes_mean"]) == ("16000.0", "8000.0")


def test_a_budget_curve_of_nothing(tmp_path: Path) -> None:
    laid_down(tmp_path / "study").close()
    outcome = nullarm("kv", "budget-curve", "--runs-root", tmp_path / "study", "--output-dir", tmp_path / "out")
    assert outcome.code == 2
    assert "no finished evaluation of a communication study" in outcome.error
    outcome = nullarm("kv", "budget-curve", "--output-dir", tmp_path)
    assert "Missing option '--runs-root'" in outcome.error
