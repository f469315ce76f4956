from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from kv_studies import STUDY, TRAINING, study

from nullarm.conduct import prepare
from nullarm.errors import DatasetError, ModelError, StudyError
from nullarm.protocols.kv_communication.protocol import KvCommunication
from nullarm.study.load import merged
from nullarm.study.plan import Cell, Plan
from nullarm.study.spec import Study
from nullarm.study.validate import validated


def plan(channels: dict[str, Any] | None = None, **parameters: Any) -> Plan:
    return KvCommunication().plan(study(channels, **parameters))


def arm(found: Plan, name: str) -> Cell:
    return next(cell for cell in found if cell.arm == name)


def test_every_arm_is_evaluated_after_its_fuser() -> None:
    found = plan()

    assert [(c.stage, c.arm, c.slice) for c in found] == [
        ("train_fuser", None, "main"), ("calibrate", None, "main-bf16"),
        ("evaluate", "alone", "world_relations"), ("evaluate", "c2c", "world_relations"),
    ]  # fmt: skip
    trained = next(iter(found))
    assert arm(found, "c2c").needs == {"fuser:main": trained.id}
    assert arm(found, "alone").needs == {}


def test_a_fuser_is_trained_only_where_an_arm_uses_it_or_starts_from_it() -> None:
    fusers = {
        "qat": {"sharer": "chat", "start_from": "main", "codecs": ["int8"], "training": TRAINING},
        "unused": {"sharer": "chat", "training": TRAINING},
    }
    found = plan({"tuned": {"fusers": ["qat"]}}, fusers=fusers)

    assert [c.slice for c in found if c.stage == "train_fuser"] == ["main", "qat"]
    by_id = found.by_id
    qat = by_id[arm(found, "tuned").needs["fuser:qat"]]
    assert by_id[qat.needs["fuser:main"]].slice == "main"


def test_a_fuser_may_go_on_from_one_that_was_trained_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "projector_config.json").write_text("{}")
    fusers = {
        "elsewhere": {"sharer": "chat", "directory": str(tmp_path)},
        "tuned": {"sharer": "chat", "start_from": "elsewhere", "training": TRAINING},
    }
    cell = next(c for c in plan({"t": {"fusers": ["tuned"]}}, fusers=fusers) if c.slice == "tuned")

    assert cell.needs == {}
    assert cell.inputs["fuser:elsewhere"].startswith("fuser:")
    assert cell.settings["fusers"]["elsewhere"]["directory"] == str(tmp_path)


def test_an_allocation_needs_the_calibration_of_all_widths_that_are_asked_of_the_codec() -> None:
    channels = {
        "low": {"codec": "r", "allocation": {"bits": [1, 2], "mean_bits": 1.5}},
        "high": {"codec": "r", "allocation": {"bits": [2, 8], "mean_bits": 4}},
    }
    found = plan(channels, codecs={"r": {"kind": "rotated"}}, milestones=[5])

    calibrated = found.by_id[arm(found, "low").needs["calibration"]]
    assert calibrated.slice == "main-r"
    assert calibrated.parameters["widths"] == [1, 2, 8]
    assert {c.arm for c in found if c.stage == "evaluate"} == {"low", "high"}


def test_milestones_choose_the_arms() -> None:
    channels = {"eight": {"codec": "int8"}, "half": {"codec": "int8", "proportion": 0.5}}

    assert {c.arm for c in plan(channels, milestones=[0]) if c.arm} == {"alone", "c2c"}
    assert {c.arm for c in plan(channels, milestones=[3]) if c.arm} == {"half"}
    with pytest.raises(StudyError, match=r"no arm belongs to these milestones; got \[5\]; valid: 0, 2, 3"):
        plan(channels, milestones=[5])


def test_a_new_arm_runs_no_other_again() -> None:
    mixed = {"m": {"codec": "r", "allocation": {"bits": [1, 2], "mean_bits": 1.5}}}
    codecs = {"r": {"kind": "rotated"}}
    before = {cell.id for cell in plan(mixed, codecs=codecs)}
    after = {cell.id for cell in plan({**mixed, "eight": {"codec": "int8"}}, codecs=codecs)}

    assert before < after
    assert len(after) == len(before) + 2  # the arm, and what is measured of its codec


def test_what_an_arm_does_not_load_is_none_of_its_inputs() -> None:
    found = plan({"s": {"via": "sharer"}}, max_new_tokens=5)

    assert set(arm(found, "alone").inputs) == {"receiver", "task"}
    assert set(arm(found, "s").inputs) == {"sharer:chat", "task"}
    assert {c.id for c in found} == {c.id for c in plan({"s": {"via": "sharer"}})}  # nothing is generated


def test_where_and_how_fast_is_no_part_of_a_cells_identity() -> None:
    ids = {cell.id for cell in plan()}

    link = {"bandwidth_gbit_s": 10.0}
    same = plan(link=link, chunk_size=3, evaluation_batch_size=2, run_tag_prefix="x")
    assert {cell.id for cell in same} == ids
    assert {cell.id for cell in plan(limit=3)} != ids
    assert {cell.id for cell in plan(dtype="bfloat16")} != ids


def test_another_definition_under_the_same_codec_name_is_another_question() -> None:
    first = plan({"q": {"codec": "mine"}}, codecs={"mine": {"kind": "rotated", "bits": 2}})
    second = plan({"q": {"codec": "mine"}}, codecs={"mine": {"kind": "rotated", "bits": 3}})

    assert arm(first, "q").id != arm(second, "q").id
    assert arm(first, "c2c").id == arm(second, "c2c").id


def test_several_data_sets_are_slices_and_two_of_a_kind_are_numbered() -> None:
    tasks = [{"kind": "world_relations", "test_items": 6}, {"kind": "world_relations", "seed": 1, "test_items": 6}]
    found = plan(tasks=tasks)

    assert Counter(c.slice for c in found if c.arm == "c2c") == {"world_relations": 1, "world_relations-2": 1}


def test_a_fuser_from_elsewhere_is_named_by_its_content(tmp_path: Path) -> None:
    (tmp_path / "projector_config.json").write_text("{}")
    fuser = {"elsewhere": {"sharer": "chat", "directory": str(tmp_path)}}
    first = arm(plan({"e": {"fusers": ["elsewhere"]}}, fusers=fuser), "e")
    (tmp_path / "projector_config.json").write_text("{ }")
    second = arm(plan({"e": {"fusers": ["elsewhere"]}}, fusers=fuser), "e")

    assert first.inputs["fuser:elsewhere"].startswith("fuser:")
    assert first.id != second.id


def test_a_missing_fuser_directory_names_itself() -> None:
    with pytest.raises(ModelError, match=r"has no projector_config.json; got '/nowhere'; valid: a directory"):
        plan({"e": {"fusers": ["f"]}}, fusers={"f": {"sharer": "chat", "directory": "/nowhere"}})
    with pytest.raises(ModelError, match="malformed; got 'hf:one'"):
        plan({"e": {"fusers": ["f"]}}, fusers={"f": {"sharer": "chat", "directory": "hf:one"}})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"factors": {"channel": {"orphan": {}}}}, "'orphan' is an arm without a channel"),
        ({"parameters": {"channels": {"orphan": {}}}}, "'orphan' is a channel without an arm"),
        ({"factors": {"channel": {"c2c": {"replicates": 2}}}}, "an arm is drawn once per seed; got 2"),
        ({"analysis": {"metric": "js"}}, "analysis.metric 'js' is not measured; valid: accuracy, log_likelihood"),
        ({"parameters": {"answer_by": "generation"}, "analysis": {"metric": "log_likelihood"}}, "valid: accuracy$"),
        ({"parameters": {"tasks": [{"kind": "glue"}]}}, "task 'glue' has no answers in words"),
        ({"factors": {"more": {"x": {}}}}, r"takes one factor, whose arms are channels; got \['channel', 'more'\]"),
    ],
)
def test_a_study_that_makes_no_sense_is_refused(change: dict[str, Any], words: str) -> None:
    odd = validated(Study, merged(STUDY, change), "small", {})
    with pytest.raises(StudyError, match=words):
        KvCommunication().plan(odd)


def test_the_plan_says_what_a_token_costs() -> None:
    made = study({"eight": {"codec": "int8"}})
    notes = KvCommunication().design(made, KvCommunication().plan(made)).notes

    assert any("bytes a token from chat, all gates open, at 256 tokens: bf16 384, int8 19" in note for note in notes)


@pytest.mark.parametrize("profile", [None, "qwen3_1p7b", "qwen3_8b"])
def test_the_published_pairs_are_planned_without_their_weights(profile: str | None) -> None:
    found = prepare("kv_communication_qwen", profile=profile)

    assert {c.slice for c in found.plan if c.arm == "c2c"} == {"openbookqa", "arc_challenge", "mmlu_redux", "c_eval"}
    assert not [c for c in found.plan if c.stage == "train_fuser"]
    heterogeneous = {c.arm for c in found.plan} & {"llama_1b", "qwen3_4b", "two_sharers"}
    assert bool(heterogeneous) == (profile is None)


def test_the_split_that_fusers_are_trained_on_has_to_be_there(tmp_path: Path) -> None:
    rows = '{"question": "q", "choices": ["a", "b", "c", "d"], "answer": 0, "error_type": "ok"}\n' * 9
    (tmp_path / "anatomy").mkdir()
    (tmp_path / "anatomy" / "test.jsonl").write_text(rows)
    with pytest.raises(DatasetError, match="fusers are trained on the train split of `training_task`"):
        plan(training_task={"kind": "mmlu_redux", "path": str(tmp_path), "test_items": 5})


def test_tokens_are_not_chosen_by_queries_that_nobody_knows(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["GPT2LMHeadModel"]}')
    with pytest.raises(ModelError, match=r"channels\.e: .* needs the queries of the sharer; got 'GPT2LMHeadModel'"):
        plan({"e": {"proportion": 0.5, "order": "expected_attention"}}, sharers={"chat": str(tmp_path)})
