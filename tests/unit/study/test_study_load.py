from __future__ import annotations

from pathlib import Path

import pytest

from nullarm.errors import FormatError, StudyError
from nullarm.study.load import load_study, merged, set_dotted
from nullarm.study.shipped import shipped_studies, study_path
from support.rehearsals import write_study


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_study(tmp_path / "study.yaml")


def child(path: Path, name: str, text: str) -> Path:
    made = path.with_name(name)
    made.write_text(text, encoding="utf-8")
    return made


def test_a_plain_file(path: Path) -> None:
    study = load_study(path)
    assert (study.name, study.seeds, study.smoke) == ("little", (0, 1), False)
    assert sorted(study.arms) == ["sham", "treated"]


def test_overrides_are_yaml_and_come_last(path: Path) -> None:
    study = load_study(path, overrides=["seeds=[5,6,7]", "parameters.items=9", "analysis.alpha=1e-2", "name=other"])
    assert (study.seeds, study.parameters["items"], study.analysis.alpha, study.name) == ((5, 6, 7), 9, 0.01, "other")
    assert study.parameters["chunks"] == 2


@pytest.mark.parametrize("override", ["seeds", "=3", "a..b=3", ""])
def test_an_override_without_key_or_value_is_refused(path: Path, override: str) -> None:
    with pytest.raises(StudyError, match=r"an override must read dotted\.key=value"):
        load_study(path, overrides=[override])


def test_an_override_is_named_as_the_place_of_its_error(path: Path) -> None:
    with pytest.raises(StudyError, match=r"--set analysis\.alpha: analysis\.alpha: must be less than 0\.5; got 0\.7"):
        load_study(path, overrides=["analysis.alpha=0.7"])
    with pytest.raises(StudyError, match=r"--set seeds:1: not valid YAML"):
        load_study(path, overrides=["seeds=[1"])


def test_extends_lays_one_file_over_another(path: Path) -> None:
    text = "extends: study.yaml\nname: child\nseeds: [7]\nparameters: {items: 6}\n"
    study = load_study(child(path, "child.yaml", text))
    assert (study.name, study.seeds, study.question) == ("child", (7,), "Is an effect of 0.2 found?")
    assert study.parameters == {"items": 6, "chunks": 2, "effects": {"treated": 0.2}}


def test_an_error_names_the_file_it_was_inherited_from(path: Path) -> None:
    base = child(path, "base.yaml", path.read_text() + "sedes: [1]\n")
    line = base.read_text().splitlines().index("sedes: [1]") + 1
    with pytest.raises(StudyError, match=rf"base\.yaml:{line}: unknown key 'sedes' \(did you mean 'seeds'\?\)"):
        load_study(child(path, "child.yaml", "extends: base.yaml\nname: child\n"))


def test_extends_in_a_circle_is_refused(path: Path) -> None:
    first = child(path, "first.yaml", "extends: second.yaml\n")
    child(path, "second.yaml", "extends: first.yaml\n")
    with pytest.raises(StudyError, match=r"goes in a circle: first\.yaml → second\.yaml → first\.yaml"):
        load_study(first)


def test_extends_must_be_a_path_to_a_file(path: Path) -> None:
    with pytest.raises(StudyError, match="`extends` must be the path"):
        load_study(child(path, "child.yaml", "extends: [study.yaml]\n"))
    with pytest.raises(StudyError, match="cannot read study file"):
        load_study(child(path, "child.yaml", "extends: nowhere.yaml\n"))


def test_a_profile_is_laid_over(path: Path) -> None:
    text = path.read_text() + "profiles:\n  one: {seeds: [3], parameters: {items: 2}}\n"
    study = load_study(child(path, "p.yaml", text), profile="one")
    assert (study.seeds, study.parameters["items"], study.parameters["chunks"]) == ((3,), 2, 2)


def test_an_error_of_a_profile_names_its_line(path: Path) -> None:
    text = path.read_text() + "profiles:\n  one:\n    seeds: [3, 3]\n"
    made = child(path, "p.yaml", text)
    with pytest.raises(StudyError, match=rf"p\.yaml:{len(text.splitlines())}: seeds: seeds repeat: \[3\]"):
        load_study(made, profile="one")


def test_a_missing_profile_lists_what_there_is(path: Path) -> None:
    with pytest.raises(StudyError, match="no profile 'fast'; valid: the file has no `profiles`"):
        load_study(path, profile="fast")
    made = child(path, "p.yaml", path.read_text() + "profiles: {one: {}, two: {}}\n")
    with pytest.raises(StudyError, match="no profile 'fast'; valid: one, two"):
        load_study(made, profile="fast")


@pytest.mark.parametrize("value", ["1", "true", " Yes "])
def test_dev_mode_is_a_smoke_run_with_the_quick_profile(path: Path, value: str) -> None:
    made = child(path, "p.yaml", path.read_text() + "profiles: {quick: {seeds: [3]}}\n")
    study = load_study(made, environment={"DEV_MODE": value})
    assert (study.smoke, study.seeds) == (True, (3,))
    assert load_study(path, environment={"DEV_MODE": value}).smoke
    assert load_study(made, environment={"DEV_MODE": value}, profile="quick", overrides=["seeds=[4]"]).seeds == (4,)


@pytest.mark.parametrize("value", ["", "0", "no", "OFF"])
def test_dev_mode_can_be_off(path: Path, value: str) -> None:
    assert not load_study(path, environment={"DEV_MODE": value}).smoke


def test_dev_mode_is_read_from_the_process_environment(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEV_MODE", "1")
    assert load_study(path).smoke


def test_an_unreadable_dev_mode_is_refused(path: Path) -> None:
    with pytest.raises(StudyError, match="environment variable DEV_MODE; got 'maybe'; valid: 1, true"):
        load_study(path, environment={"DEV_MODE": "Maybe"})


def test_a_newer_format_is_refused_before_its_keys_are_read(path: Path) -> None:
    with pytest.raises(FormatError, match=r"study format 2 is newer than this nullarm reads; valid: up to 1"):
        load_study(child(path, "new.yaml", "format: 2\nnew_key: 1\n"))


@pytest.mark.parametrize("text", ["", "- 1\n", "text\n"])
def test_a_study_file_is_a_mapping(path: Path, text: str) -> None:
    with pytest.raises(StudyError, match="a study file is a mapping of keys"):
        load_study(child(path, "bad.yaml", text))


def test_merging_leaves_its_arguments_alone() -> None:
    base = {"a": {"b": 1, "c": [1]}, "d": 2}
    assert merged(base, {"a": {"b": 3}, "d": {"e": 4}}) == {"a": {"b": 3, "c": [1]}, "d": {"e": 4}}
    assert set_dotted(base, "a.x.y", 5) == {"a": {"b": 1, "c": [1], "x": {"y": 5}}, "d": 2}
    assert base == {"a": {"b": 1, "c": [1]}, "d": 2}


def test_every_shipped_study_can_be_read() -> None:
    studies = shipped_studies()
    assert {"rehearsal", "rank_mechanism_tiny"} <= set(studies)
    for name, shipped in studies.items():
        assert load_study(shipped, environment={}).name
        assert study_path(name) == shipped


def test_a_study_is_found_by_path_or_name(path: Path) -> None:
    assert study_path(str(path)) == path
    with pytest.raises(StudyError, match=r"no study file 'rehersal' \(did you mean 'rehearsal'\?\)"):
        study_path("rehersal")
