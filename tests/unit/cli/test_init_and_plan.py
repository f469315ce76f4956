"""`nullarm init` and the refusals of `nullarm plan`, as typed."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.command import nullarm
from support.rehearsals import write_study


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
