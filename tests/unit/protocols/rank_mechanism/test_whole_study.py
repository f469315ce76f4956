"""Whole rank-mechanism studies on tiny models: every arm trains, and what each cell hands on is what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nullarm.conduct import Prepared, conclude, lay_down, prepare, run
from nullarm.engines.inline import InlineEngine
from nullarm.errors import StudyError
from nullarm.protocols.rank_mechanism.arms import ADALORA, ARMS, EVA
from nullarm.report.markdown import render_markdown
from nullarm.store.study_store import StudyStore
from nullarm.study.load import merged
from nullarm.study.spec import Study

TRAINING = {"steps": 12, "batch_size": 8, "learning_rate": 5e-3, "checkpoint_every": 5}
STUDY: dict[str, Any] = {
    "name": "whole",
    "question": "Does every arm train?",
    "protocol": "rank_mechanism",
    "seeds": [1, 2],
    "factors": {
        "ranks": {
            name: {"role": "control", "null": text, "replicates": 4 if name == "shuffled" else 1}
            for name, text in ARMS.items()
        }
    },
    "parameters": {
        "model": "builtin:world",
        "task": {"kind": "world_relations", "dev_items": 9, "test_items": 30},
        "probe_rank": 12,
        "alpha": 12,
        "alpha_rule": "alpha=r",
        "training": TRAINING,
        "allocation": {"energy": 0.95, "allowed_ranks": [1, 2, 3, 4, 6, 12]},
    },
    "analysis": {
        "metric": "log_likelihood",
        "margin": 0.1,
        "resamples": 200,
        "contrasts": [
            {
                "name": "mechanism", "treatment": "audited", "control": "shuffled",
                "test": "within_seed_randomisation", "primary": True,
            }
        ],
    },
}  # fmt: skip


def prepared(**changes: Any) -> Prepared:
    return prepare(Study.model_validate(merged(STUDY, changes)))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> StudyStore:
    """A finished study with every arm, at one seed's worth of training for each of two seeds."""
    store = lay_down(prepared(), tmp_path_factory.mktemp("whole") / "study")
    result = run(store, InlineEngine())
    assert not result.failed, result.failed
    assert not result.blocked, result.blocked
    return store


def cells(store: StudyStore, stage: str) -> dict[tuple[int, str | None, int | None], Any]:
    return {(c.seed, c.arm, c.replicate): store.finished(c.id) for c in store.plan if c.stage == stage}


def test_every_arm_trains_with_exactly_its_map(whole: StudyStore) -> None:
    allocations = cells(whole, "allocate")
    for (seed, arm, replicate), finished in cells(whole, "retrain").items():
        maps = allocations[seed, None, None].json("allocation")["maps"]
        if arm not in (EVA, ADALORA):
            key = f"shuffled_{replicate}" if arm == "shuffled" else arm
            assert finished.json("ranks") == maps[key], (seed, arm, replicate)


def test_pefts_own_allocators_end_near_the_parameters_of_the_audited_map(whole: StudyStore) -> None:
    for (_, arm, _), finished in cells(whole, "retrain").items():
        if arm in (EVA, ADALORA):
            assert finished.record.metrics["parameters_over_audited"] == pytest.approx(1, abs=0.05)


def test_permuted_arms_have_the_parameters_of_the_audited_map(whole: StudyStore) -> None:
    permuted = [f for (_, arm, _), f in cells(whole, "retrain").items() if arm in ("shuffled", "inverse", "replicate")]
    assert len(permuted) == 2 * 6
    assert {f.record.metrics["parameters_over_audited"] for f in permuted} == {1.0}


def test_replicate_differs_from_audited_in_nothing_but_its_initialisation(whole: StudyStore) -> None:
    retrained = cells(whole, "retrain")
    audited, replicate = retrained[1, "audited", None], retrained[1, "replicate", None]
    assert audited.json("ranks") == replicate.json("ranks")
    assert audited.record.metrics["train_loss"] != replicate.record.metrics["train_loss"]


def test_audit_reads_the_adapter_of_the_last_step(whole: StudyStore) -> None:
    """The audit reads the adapter artefact, saved after the last step; auditing that file again gives its spectra."""
    from nullarm.protocols.rank_mechanism.audit import audit_adapter

    probe = cells(whole, "probe")[1, "probe", None]
    audit = cells(whole, "audit")[1, None, None].json("audit")
    again = audit_adapter(probe.artefact("adapter"))
    assert probe.record.metrics["steps"] == TRAINING["steps"]
    assert not list(probe.paths.root.rglob("checkpoint*"))
    assert [m["singular_values"] for m in audit["modules"]] == [m.singular_values for m in again.modules]
    assert all(m["udr"] is not None for m in audit["modules"])


def test_every_test_item_has_a_prediction(whole: StudyStore) -> None:
    for stage in ("probe", "retrain"):
        for finished in cells(whole, stage).values():
            items = finished.table("items").to_pylist()
            assert len({row["item"] for row in items}) == 30
            assert all(row["prediction"] for row in items)


def test_conclusion_has_verdict_tables_outputs_and_report(whole: StudyStore) -> None:
    conclusion = conclude(whole)
    assert conclusion.analysis.primary.judgement.n_seeds == 2
    assert "OVERALL CONCLUSION" in conclusion.closing
    assert (whole.paths.output / "mechanism_analysis.json").exists()
    text = whole.paths.report_markdown.read_text()
    for arm in ("audited", "shuffled 4", "eva", "adalora"):
        assert arm in text
    assert json.loads(whole.paths.analysis.read_text())["verdict"] == conclusion.analysis.primary.judgement.verdict


def test_report_cites_only_cells_of_the_plan(whole: StudyStore) -> None:
    from nullarm.protocols.rank_mechanism.protocol import RankMechanism

    protocol = RankMechanism()
    document = protocol.document(whole, protocol.analyse(whole))
    assert {ref.cell_id for ref in document.cells} == set(whole.plan.by_id)
    assert "Rank of each module" in render_markdown(document)


def test_failed_gate_stops_the_study_before_anything_else_is_trained(tmp_path: Path) -> None:
    store = lay_down(prepared(parameters={"gate": {"min_value": 1.1}}), tmp_path / "study")
    result = run(store, InlineEngine())
    assert result.stopped_by is not None
    assert "UNDERTRAINED" in (result.stopped_by.record.reason or "")
    assert {c.stage for c in store.plan if store.finished(c.id)} == {"probe"}
    judgement = conclude(store).analysis.primary.judgement
    assert judgement.verdict == "INVALID"
    assert "UNDERTRAINED" in judgement.reason


def test_equal_ranks_admit_no_shuffle_and_say_so(tmp_path: Path) -> None:
    store = lay_down(prepared(parameters={"allocation": {"allowed_ranks": [12]}}), tmp_path / "study")
    result = run(store, InlineEngine())
    assert result.stopped_by is not None
    assert result.stopped_by.record.outcome == "invalid"
    assert "permuted" in conclude(store).analysis.primary.judgement.reason


def test_cross_fit_takes_the_audit_of_another_seed() -> None:
    straight, crossed = prepared().plan, prepared(parameters={"cross_fit": True}).plan
    audits = {c.id: c.seed for c in crossed if c.stage == "audit"}
    sources = {c.seed: audits[c.needs["audit"]] for c in crossed if c.stage == "allocate"}
    assert sources == {1: 2, 2: 1}
    own = {c.id: c.seed for c in straight if c.stage == "audit"}
    assert all(own[c.needs["audit"]] == c.seed for c in straight if c.stage == "allocate")


def test_cross_fit_of_one_seed_is_refused() -> None:
    with pytest.raises(StudyError, match=r"cross_fit needs another seed.*2 or more seeds"):
        prepared(parameters={"cross_fit": True}, seeds=[1])


def test_a_changed_allocation_keeps_probes_and_audits() -> None:
    before, after = prepared().plan, prepared(parameters={"allocation": {"energy": 0.9}}).plan
    kept = set(before.by_id) & set(after.by_id)
    assert {before.by_id[i].stage for i in kept} == {"probe", "audit"}


def test_what_does_not_change_a_result_does_not_change_an_identity() -> None:
    changed = prepared(parameters={"evaluation_batch_size": 7, "training": {"checkpoint_every": 3}}).plan
    assert changed.hash == prepared().plan.hash
    assert prepared(parameters={"training": {"steps": 13}}).plan.hash != changed.hash


def test_an_arm_the_protocol_does_not_have_is_refused() -> None:
    with pytest.raises(StudyError, match=r"no arm 'shufled'.*shuffled"):
        prepared(factors={"ranks": {"shufled": {}}})


def test_ranks_that_do_not_divide_are_refused() -> None:
    with pytest.raises(StudyError, match=r"5 does not divide probe_rank 12; valid: \[1, 2, 3, 4, 6, 12\]"):
        prepared(parameters={"allocation": {"allowed_ranks": [1, 5]}})


def test_sequence_classification_runs_through_the_same_cells(tmp_path: Path) -> None:
    words = ("good", "fine", "bad", "poor")
    for split, count in (("train", 60), ("validation", 12)):
        rows = [{"sentence": f"{words[i % 4]} {i}", "label": int(i % 4 < 2)} for i in range(count)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    changes = {"kind": "glue", "subset": "sst2", "path": str(tmp_path), "dev_items": 8, "test_items": None}
    data = merged(STUDY, {"factors": {"ranks": {}}, "seeds": [1, 2]})
    data["parameters"] = {**STUDY["parameters"], "task": changes}
    data["factors"] = {"ranks": {n: a for n, a in STUDY["factors"]["ranks"].items() if n in ("audited", "shuffled")}}
    store = lay_down(prepare(Study.model_validate(data)), tmp_path / "study")
    assert not run(store, InlineEngine()).failed
    predictions = {row["prediction"] for f in cells(store, "retrain").values() for row in f.table("items").to_pylist()}
    assert predictions <= {"negative", "positive"}
