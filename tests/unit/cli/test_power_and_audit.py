"""`nullarm power` and `nullarm audit`, as typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from support.command import nullarm
from support.rehearsals import write_study


@pytest.fixture
def study(tmp_path: Path) -> Path:
    changes = {"seeds": [0, 1, 2, 3], "factors.arm.sham.replicates": 3, "parameters.replicate_sd": 0.1}
    return write_study(tmp_path / "study.yaml", changes)


def test_power_needs_to_know_the_noise(study: Path) -> None:
    outcome = nullarm("power", study)
    assert outcome.code == 2
    assert "the noise is not known; valid: --pilot DIR, --sd X, or analysis.expected_sd" in outcome.err


def test_more_seeds_detect_smaller_effects(study: Path) -> None:
    facts = nullarm("power", study, "--sd", "0.1", "--effect", "0.1", "--json").json
    detectable = [row["detectable"] for row in facts["designs"]]
    assert detectable == sorted(detectable, reverse=True)
    assert facts["seeds_needed"] in range(4, 30)
    text = nullarm("power", study, "--sd", "0.1", "--effect", "0.1").out
    assert f"seeds needed for 80 % power: {facts['seeds_needed']}" in text


def test_pilot_measures_the_noise_that_was_planted(study: Path, tmp_path: Path) -> None:
    assert nullarm("run", study, "--dir", tmp_path / "pilot", "--engine", "inline").code == 0
    facts = nullarm("power", study, "--pilot", tmp_path / "pilot", "--json").json
    assert facts["sd"] == pytest.approx(0.1, rel=0.8)
    wrong = nullarm("power", study, "--pilot", tmp_path / "pilot", "--aa", "nobody")
    assert (wrong.code, "the pilot has no arm 'nobody'" in wrong.err) == (2, True)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """One module, ΔW = 2 · diag(3, 1) in the first two directions."""
    directory = tmp_path / "adapter"
    directory.mkdir()
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    a, b = torch.eye(2, 6), torch.zeros(5, 2)
    b[0, 0], b[1, 1] = 3.0, 1.0
    save_file({f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}, directory / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    return directory


def test_audit_prints_modules_and_total(adapter: Path) -> None:
    lines = nullarm("audit", adapter).out.splitlines()
    assert lines[0].split()[:4] == ["module", "r", "k@90", "k@99"]
    assert lines[1].split() == ["model.layers.0.self_attn.q_proj", "2", "1", "2", "1.11", "6.32", "–", "1"]
    assert lines[2] == "1 modules, 22 LoRA parameters; suggested 11"


def test_audit_as_json_has_the_documented_keys(adapter: Path) -> None:
    found = nullarm("audit", adapter, "--json").json
    assert found["modules"][0]["singular_values"] == pytest.approx([6.0, 2.0])
    assert found["modules"][0]["name"] == "model.layers.0.self_attn.q_proj"
    assert found["suggestion"]["rank_pattern"] == {"model.layers.0.self_attn.q_proj": 1}
    assert nullarm("audit", adapter, "--json", "--suggest", "global").json["suggestion"]["rank"] == 1


def test_audit_of_an_adapter_without_b_names_the_module(adapter: Path) -> None:
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    save_file({name: torch.eye(2, 6)}, adapter / "adapter_model.safetensors")
    outcome = nullarm("audit", adapter)
    assert outcome.code == 14
    assert "model.layers.0.self_attn.q_proj" in outcome.err
    assert outcome.err.count("\n") == 1
