"""A small study of every kind of arm, run for real from the first cell to the report."""

from __future__ import annotations

import json
from typing import Any

import pytest
from low_rank_studies import COMPRESS, QKV, SPECULATE, low_rank_study, timing

from nullarm.conduct import Conclusion, conclude, lay_down, prepare, run
from nullarm.engines.inline import InlineEngine
from nullarm.store.study_store import StudyStore

ALL = [*QKV, "o", "gate", "up", "down"]
ARMS: dict[str, Any] = {
    "gauge": {"method": {"kind": "svd"}, "slots": ALL, "budget": {"keep": 0.75}, "gauge": {}},
    "online": {**COMPRESS, "online": {"direction": "difference", "blocks": 2, "block_tokens": 256}},
    "filled": {
        "method": {"kind": "whitened_grc"}, "slots": QKV, "budget": {"keep": 0.5},
        "allocation": {"kind": "water_filling"},
    },
    "mcr": {**COMPRESS, "allocation": {"kind": "mcr"}},
    "int4": {"method": {"kind": "round_to_nearest", "bits": 4}, "slots": QKV},
    "spec": SPECULATE,
}  # fmt: skip
SWEEP = {"methods": [{"kind": "svd"}, {"kind": "svd_llm"}], "slots": ["q", "down"], "keep": [0.5], "windows": 2}
SECTIONS = (
    "The arms", "What bytes and speed cost", "Ranks by layer", "Timing sessions", "Speculative decoding",
    "Gauge and online basis", "One layer at a time", "Spectra", "Tolerances of the source",
)  # fmt: skip


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[StudyStore, Conclusion]:
    study = low_rank_study(ARMS, (timing("mcr", "compress", "rerun"),), sweep=SWEEP, rerun="rerun")
    store = lay_down(prepare(study), tmp_path_factory.mktemp("whole") / "run")
    result = run(store, InlineEngine())
    assert (result.failed, result.blocked) == ({}, {})
    return store, conclude(store)


def test_the_report_has_every_section(done: tuple[StudyStore, Conclusion]) -> None:
    store, _ = done
    told = store.paths.report_markdown.read_text()
    assert [name for name in SECTIONS if f"## {name}\n" not in told] == []


def test_every_arm_has_its_line_and_every_contrast_its_verdict(done: tuple[StudyStore, Conclusion]) -> None:
    _, conclusion = done
    lines = [line.split()[0] for line in conclusion.closing.splitlines() if line.startswith("  ")]
    assert {"baseline", "compress", *ARMS} <= set(lines)
    verdicts = conclusion.closing.split("VERDICTS\n")[1]
    for finding in conclusion.analysis.findings:
        name, judged = finding.contrast, finding.judgement
        assert f"{name.name} ({name.treatment} against {name.control}): {judged.verdict}. " in verdicts


def test_the_runbooks_files_are_there(done: tuple[StudyStore, Conclusion]) -> None:
    store, _ = done
    summary = json.loads((store.paths.output / "summary.json").read_text())
    assert {arm["arm"] for arm in summary["arms"]} == {"baseline", "compress", *ARMS}
    assert (store.paths.output / "mcr_ablation_summary.json").exists()
