"""Errors of a study file: the key, where it stands, its value, and what would be valid."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from nullarm.errors import StudyError
from nullarm.protocols.rank_mechanism.parameters import RankMechanismParameters
from nullarm.study.spec import Strict, Study
from nullarm.study.validate import validated
from support.rehearsals import study, study_data

PARAMETERS: dict[str, Any] = {
    "model": "builtin:world",
    "task": {"kind": "world_relations"},
    "probe_rank": 8,
    "alpha": 16,
    "training": {"steps": 10, "batch_size": 4, "learning_rate": 1e-3},
    "allocation": {"allowed_ranks": [1, 2, 4, 8]},
}


def refusal(changes: dict[str, Any]) -> str:
    with pytest.raises(StudyError) as caught:
        validated(Study, study_data(changes), "f.yaml")
    return str(caught.value)


def refused_parameters(changes: dict[str, Any]) -> str:
    with pytest.raises(StudyError) as caught:
        validated(RankMechanismParameters, {**PARAMETERS, **changes}, "f.yaml", prefix=("parameters",))
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sedes": [1]}, "f.yaml: unknown key 'sedes' (did you mean 'seeds'?); valid: analysis, budget,"),
        ({"analysis.alhpa": 0.1}, "unknown key 'analysis.alhpa' (did you mean 'alpha'?); valid: alpha, contrasts,"),
        ({"factors.arm.sham.replicate": 3}, "unknown key 'factors.arm.sham.replicate' (did you mean 'replicates'?)"),
        (
            {"resources.cpu": 2},
            "unknown key 'resources.cpu' (did you mean 'cpus'?); valid: attempts, cpus, device, gpus",
        ),
        ({"zzz": 1}, "unknown key 'zzz'; valid:"),
    ],
)
def test_an_unknown_key_comes_with_the_nearest_valid_one(changes: dict[str, Any], words: str) -> None:
    assert words in refusal(changes)


def test_an_unknown_key_in_a_list() -> None:
    contrasts = [{"name": "e", "treatment": "treated", "control": "sham", "tets": "paired_t"}]
    assert "unknown key 'analysis.contrasts.0.tets' (did you mean 'test'?)" in refusal(
        {"analysis.contrasts": contrasts}
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"training": {**PARAMETERS["training"], "step": 3}}, "'parameters.training.step' (did you mean 'steps'?)"),
        (
            {"allocation": {"enrgy": 0.9}},
            "'parameters.allocation.enrgy' (did you mean 'energy'?); valid: allowed_ranks",
        ),
        ({"gate": {"min_val": 0.5}}, "'parameters.gate.min_val' (did you mean 'min_value'?) (and 1 more)"),
        ({"probe_rnak": 4}, "'parameters.probe_rnak' (did you mean 'probe_rank'?)"),
    ],
)
def test_an_unknown_key_in_nested_models_and_dataclasses(changes: dict[str, Any], words: str) -> None:
    assert f"unknown key {words}" in refused_parameters(changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"training": {"steps": 10, "batch_size": 4}}, "'parameters.training.learning_rate' is missing"),
        (
            {"training": {**PARAMETERS["training"], "steps": "ten"}},
            "parameters.training.steps: must be a valid integer",
        ),
        ({"training": {**PARAMETERS["training"], "steps": -1}}, "steps is out of range; got -1"),
        ({"allocation": {"rounding": "sideways"}}, "parameters.allocation.rounding: must be 'up', 'nearest' or 'down'"),
        ({"allocation": 3}, "parameters.allocation: must be a mapping; got 3"),
        ({"allocation": {"energy": 2}}, "allocation.energy is unusable; got 2.0"),
        (
            {"allocation": {"allowed_ranks": [1, 3]}},
            "allowed_ranks: 3 does not divide probe_rank 8; valid: [1, 2, 4, 8]",
        ),
    ],
)
def test_values_in_nested_models_and_dataclasses(changes: dict[str, Any], words: str) -> None:
    assert words in refused_parameters(changes)


def test_a_key_under_a_value_that_is_no_mapping_has_no_choices_to_offer() -> None:
    found = refused_parameters({"target_modules": [{"q_proj": 1}]})
    assert "parameters.target_modules.0: must be a valid string" in found


def test_good_parameters_are_taken() -> None:
    assert validated(RankMechanismParameters, PARAMETERS, "f.yaml").training.steps == 10


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seeds": [3, 1, 3]}, "seeds: seeds repeat: [3]; each seed must occur once; got [3, 1, 3]"),
        ({"seeds": []}, "seeds: must have at least 1 item"),
        ({"seeds": [-1]}, "seeds.0: must be greater than or equal to 0"),
        ({"seeds": [2**32]}, "seeds.0: must be less than 4294967296"),
        ({"seeds": 3}, "seeds: must be a list; got 3"),
        ({"name": "../up"}, "name: must match pattern"),
        ({"factors.arm.9": {}}, "factors.arm.9: must match pattern"),
        ({"factors": []}, "factors: must be a mapping; got []"),
        ({"factors.arm.sham.null": None}, "factors.arm.sham: a control must state the null it stands for"),
        ({"factors.other": {"sham": {}}}, "arm names repeat over the factors: ['sham']"),
        ({"analysis.margin": "wide"}, "analysis.margin: must be a valid number"),
        ({"analysis.alpha": 0.5}, "analysis.alpha: must be less than 0.5"),
        ({"budget.max_cost": 0}, "budget.max_cost: must be greater than 0; got 0"),
        ({"question": ""}, "question: must have at least 1 character"),
        ({"profiles": {"quick": 3}}, "profiles.quick: must be a mapping; got 3"),
        ({"analysis.contrasts": []}, "analysis.contrasts: must have at least 1 item"),
    ],
)
def test_a_wrong_value_is_named(changes: dict[str, Any], words: str) -> None:
    found = refusal(changes)
    assert words in found
    assert found.endswith("; next: correct it, then `nullarm plan f.yaml`")
    assert "\n" not in found


@pytest.mark.parametrize(
    ("contrasts", "words"),
    [
        ([{"name": "e", "treatment": "treated", "control": "shame", "primary": True}], "control 'shame' is not an arm"),
        ([{"name": "e", "treatment": "sham", "control": "sham", "primary": True}], "'e' compares an arm with itself"),
        ([{"name": "e", "treatment": "treated", "control": "sham"}], "exactly one contrast must have `primary: true`"),
        ([{"name": "e", "treatment": "treated", "control": "sham", "primary": True}] * 2, "names repeat: ['e']"),
    ],
)
def test_contrasts_must_make_sense(contrasts: list[dict[str, Any]], words: str) -> None:
    assert words in refusal({"analysis.contrasts": contrasts})


def test_the_place_of_the_nearest_known_key_is_named() -> None:
    places = {"analysis": "f.yaml:9", "analysis.alpha": "f.yaml:11"}
    with pytest.raises(StudyError, match=r"^f\.yaml:11: analysis\.alpha: "):
        validated(Study, study_data({"analysis.alpha": 2}), "f.yaml", places)
    with pytest.raises(StudyError, match=r"^f\.yaml:9: unknown key 'analysis\.alhpa'"):
        validated(Study, study_data({"analysis.alhpa": 2}), "f.yaml", places)


def test_a_misspelt_kind_is_told_like_any_other_word() -> None:
    class Round(Strict):
        kind: Literal["round"]

    class Square(Strict):
        kind: Literal["square"]

    class Box(Strict):
        shape: Annotated[Round | Square, Field(discriminator="kind")]

    with pytest.raises(StudyError) as caught:
        validated(Box, {"shape": {"kind": "squar"}}, "f.yaml", {"p.shape": "f.yaml:3"}, ("p",))
    words = "f.yaml:3: p.shape.kind is unknown (did you mean 'square'?); got 'squar'; valid: round, square; next: "
    assert str(caught.value).startswith(words)


def test_a_study_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        study().name = "other"  # type: ignore[misc]


def test_the_primary_contrast() -> None:
    assert study().analysis.primary.name == "effect"
