"""`nullarm init` and the refusals of `nullarm plan`, as typed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from support.command import nullarm
from support.rehearsals import write_study

BENCH: dict[str, Any] = {
    "model": {"name": "mistralai/Mistral-7B-v0.1", "type": "causal_lm", "use_cache": False},
    "task": {"dataset": "gsm8k", "profile": "gsm8k_causal_lm"},
    "lora": {"probe_r": 8},
    "compression": {"seeds": [42, 43, 44]},
}
COMPARE: dict[str, Any] = {
    "model": {"layers": 4},
    "residual_compare": {"base_model": "builtin:world", "sft_model": "random:tiny-qwen2@1", "prompts": ["one", "two"]},
}
RUNBOOKS = [
    (BENCH, "rank_mechanism", "not carried: model.use_cache: training never caches"),
    (COMPARE, "residual", "not carried: model: outside of residual_compare"),
]
"""The source's configuration files, the protocol each is of, and what its study does not carry."""


def test_a_new_study_has_the_name_of_its_file_and_so_a_directory_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    assert nullarm("init", path).code == 0
    assert nullarm("plan", path, "--json").json["study"] == "mine"


def test_init_from_what_is_no_study_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text("model: x\nfoo: 3\n")
    outcome = nullarm("init", tmp_path / "mine.yaml", "--from", tmp_path / "other.yaml")
    assert outcome.code == 2
    assert "other.yaml:1: unknown key 'model'" in outcome.error
    assert not (tmp_path / "mine.yaml").exists()


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_plan_shows_a_refused_design_and_ends_with_the_code_of_run(tmp_path: Path, form: tuple[str, ...]) -> None:
    contrast = {"name": "effect", "treatment": "treated", "control": "sham", "primary": True}
    changes = {"analysis.contrasts": [{**contrast, "test": "within_seed_randomisation"}]}
    study = write_study(tmp_path / "study.yaml", changes)
    outcome = nullarm("plan", study, *form)
    assert "cannot give a p below 0.25" in outcome.out
    assert outcome.code == 2
    assert outcome.error.endswith("add seeds or replicates and look again with `nullarm plan`")


@pytest.mark.parametrize(("data", "protocol", "said"), RUNBOOKS)
def test_a_runbooks_own_file_is_planned_as_it_is(
    tmp_path: Path, data: dict[str, Any], protocol: str, said: str
) -> None:
    path = tmp_path / "theirs.yaml"
    path.write_text(yaml.safe_dump(data))
    outcome = nullarm("plan", path, "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["protocol"] == protocol
    assert said in outcome.err


@pytest.mark.parametrize(("data", "protocol", "said"), RUNBOOKS)
def test_init_translates_a_runbooks_own_file(tmp_path: Path, data: dict[str, Any], protocol: str, said: str) -> None:
    path, mine = tmp_path / "theirs.yaml", tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(data))
    outcome = nullarm("init", mine, "--from", path)
    assert outcome.code == 0, outcome.err
    assert said in outcome.err
    assert f"# {said}" in mine.read_text()
    planned = nullarm("plan", mine, "--json")
    assert (planned.json["study"], planned.json["protocol"]) == ("mine", protocol)
    assert planned.err == ""


def test_a_changed_key_of_a_runbooks_own_file_is_one_of_its_study(tmp_path: Path) -> None:
    path = tmp_path / "theirs.yaml"
    path.write_text(yaml.safe_dump(BENCH))
    assert nullarm("plan", path, "--json", "--set", "seeds=[7, 8, 9, 10]").json["seeds"] == [7, 8, 9, 10]
    outcome = nullarm("plan", path, "--set", "lora.probe_r=4")
    assert outcome.code == 2
    assert "theirs.yaml: unknown key 'lora'" in outcome.error
