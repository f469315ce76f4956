from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from low_rank_studies import BENCH, COMPRESS, QKV, SPECULATE, changed, low_rank_study, timing

from nullarm.conduct import prepare
from nullarm.errors import ModelError, StudyError
from nullarm.protocols.low_rank.protocol import LowRank
from nullarm.study.plan import Cell, Plan
from nullarm.study.spec import Study

MCR = {**COMPRESS, "allocation": {"kind": "mcr"}}
SWEEP = {"methods": [{"kind": "svd"}, {"kind": "asvd"}], "slots": ["q"], "keep": [0.5], "windows": 2}


def plan(study: Study) -> Plan:
    return LowRank().plan(study)


def cell(found: Plan, stage: str, arm: str | None = None) -> Cell:
    return next(c for c in found if (c.stage, c.arm) == (stage, arm))


def ids(study: Study) -> dict[tuple[str, str | None, str | None], str]:
    return {(c.stage, c.arm, c.slice): c.id for c in plan(study)}


@pytest.mark.parametrize("name", ["low_rank_tiny", "low_rank_llama31_8b"])
@pytest.mark.parametrize("profile", [None, "quick"])
def test_the_shipped_studies_are_planned_without_their_weights(name: str, profile: str | None) -> None:
    prepared = prepare(name, profile=profile)

    stages = Counter(c.stage for c in prepared.plan)
    assert set(stages) == {"spectra", "sweep", "compress", "evaluate", "speculate", "measure"}
    assert {c.slice for c in prepared.plan if c.exclusive and c.stage == "measure"} == {
        c.name for c in prepared.study.analysis.contrasts if c.test == "paired_blocks"
    }
    assert not prepared.design.refusals
    assert all(c.estimate.seconds > 0 for c in prepared.plan)


def test_every_arm_is_evaluated_with_its_own_factors() -> None:
    found = plan(low_rank_study())

    assert [(c.stage, c.arm) for c in found] == [
        ("spectra", None), ("evaluate", "baseline"), ("compress", "compress"), ("evaluate", "compress"),
    ]  # fmt: skip
    assert cell(found, "evaluate", "compress").needs == {"factors": cell(found, "compress", "compress").id}
    assert cell(found, "evaluate", "baseline").needs == {}


def test_only_ranks_by_variance_wait_for_the_spectra() -> None:
    arms = {kind: {**COMPRESS, "allocation": {"kind": kind}} for kind in ("mcr", "random", "water_filling", "uniform")}
    found = plan(low_rank_study(arms))

    needs = {name: cell(found, "compress", name).needs for name in arms}
    spectra = {"spectra": cell(found, "spectra").id}
    assert needs == {"mcr": spectra, "random": spectra, "water_filling": {}, "uniform": {}}


def test_speculation_needs_its_drafter_and_is_evaluated_as_the_model_that_verifies() -> None:
    found = plan(low_rank_study({"spec": SPECULATE}, (timing("spec", "baseline"),)))

    factors = cell(found, "compress", "compress").id
    assert cell(found, "speculate", "spec").needs == {"drafter": factors}
    assert cell(found, "speculate", "spec").exclusive
    assert cell(found, "evaluate", "spec").needs == {}
    session = cell(found, "measure")
    assert session.needs == {"treatment": factors}
    assert session.parameters["speculation"]["treatment"]["tokens"] == 3
    assert session.exclusive
    assert session.slice == "speed"


@pytest.mark.parametrize(
    ("more", "moved"),
    [
        ({"window": 16}, {"spectra", "compress", "evaluate", "sweep"}),
        ({"calibration_tokens": 2048}, {"spectra", "compress", "sweep"}),
        ({"evaluation_tokens": 99}, {"evaluate", "sweep"}),
        ({"stride": 16}, {"evaluate", "sweep"}),
        ({"joined": True}, {"evaluate", "sweep"}),
        ({"dtype": "bfloat16"}, {"spectra", "compress", "evaluate", "sweep", "speculate", "measure"}),
        ({"bench": {**BENCH, "blocks": 6}}, {"measure"}),
        ({"sweep": {**SWEEP, "windows": 3}}, {"sweep"}),
        ({"batch_size": 3}, set()),
        ({"layers_at_once": 2}, set()),
        ({"rerun": "speed"}, set()),
    ],
)
def test_an_identity_moves_with_what_its_result_hangs_on(more: dict[str, Any], moved: set[str]) -> None:
    """An evaluation also moves with the factors that it needs; the baseline's own does only as it says itself."""
    first, second = (
        ids(low_rank_study({"spec": SPECULATE}, (timing("compress", "baseline"),), **{"sweep": SWEEP, **change}))
        for change in ({}, more)
    )

    alone = {key for key in first if key[:2] not in {("evaluate", "compress")}}
    through = {"speculate", "measure"} if "compress" in moved else set()  # their drafter's and arm's factors
    assert {key[0] for key in alone if first[key] != second[key]} == moved | through
    assert (first["evaluate", "compress", None] != second["evaluate", "compress", None]) == bool(
        moved & {"compress", "evaluate"}
    )


@pytest.mark.parametrize(
    "change",
    [
        {"method": {"kind": "grc", "normalised": False}},
        {"budget": {"keep": 0.25}},
        {"slots": ["q", "k", "v", "o"]},
        {"allocation": {"kind": "mcr"}},
        {"allocation": {"multiple_of": 2}},
        {"gauge": {"iterations": 3}},
        {"online": {"blocks": 1}},
    ],
)
def test_every_knob_of_an_arm_makes_other_factors(change: dict[str, Any]) -> None:
    def of(arm: dict[str, Any]) -> Cell:
        return cell(plan(low_rank_study({"one": arm})), "compress", "one")

    assert of({**COMPRESS, **change}).id != of(COMPRESS).id


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"compression": {"one": {**COMPRESS, "budget": {"rank": 65}}}},
         r"compression\.one\.budget\.rank is above the rank of the matrices; got 65; valid: up to 64"),
        ({"compression": {"spec": {"speculation": {"drafter": "compress", "prompts": 7}}}},
         r"compression\.spec\.speculation\.prompts are more than the test split has documents; got 7; valid: up to 6"),
        ({"window": 513, "calibration_tokens": 1024},
         r"parameters\.window is longer than the context of builtin:world; got 513; valid: up to 512"),
    ],
)  # fmt: skip
def test_what_shapes_and_texts_tell_is_refused_before_anything_runs(change: dict[str, Any], words: str) -> None:
    arms = change.pop("compression", {})
    with pytest.raises(StudyError, match=words):
        plan(low_rank_study(arms, **change))


def test_budgets_of_equal_numbers_are_one_question() -> None:
    budgets: list[dict[str, Any]] = [{"rank": 21}, {"keep": 0.4922}]
    found = [cell(plan(low_rank_study({"one": {**COMPRESS, "budget": b}})), "compress", "one").id for b in budgets]
    assert found[0] == found[1]


def test_a_new_arm_runs_no_other_again() -> None:
    new = {"more": {"method": {"kind": "svd"}, "slots": QKV, "budget": {"keep": 0.5}}}
    first, second = (set(ids(low_rank_study(arms)).values()) for arms in ({}, new))

    assert first < second
    assert len(second) == len(first) + 2


def test_every_seed_and_every_draw_has_cells_of_its_own() -> None:
    study = changed({
        "seeds": [0, 1],
        "factors": {"compression": {"r": {"replicates": 2}}},
        "parameters": {"compression": {"r": {**COMPRESS, "allocation": {"kind": "random"}}}},
    })  # fmt: skip
    drawn = [(c.seed, c.replicate) for c in plan(study) if (c.stage, c.arm) == ("compress", "r")]

    assert drawn == [(0, 1), (0, 2), (1, 1), (1, 2)]
    assert len([c for c in plan(study) if c.stage == "spectra"]) == 1


def with_replicates(arm: str) -> dict[str, Any]:
    return {"factors": {"compression": {arm: {"replicates": 2}}}}


def with_contrasts(*more: dict[str, Any]) -> dict[str, Any]:
    first = low_rank_study().analysis.contrasts[0].model_dump(mode="json")
    return {"analysis": {"contrasts": [first, *more]}}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"factors": {"compression": {"orphan": {}}}}, "'orphan' is an arm without a compression"),
        ({"parameters": {"compression": {"orphan": {}}}}, "'orphan' is a compression without an arm"),
        ({"factors": {"more": {"x": {}}}}, r"takes one factor, .* compressions; got \['compression', 'more'"),
        ({"analysis": {"metric": "nll"}}, "analysis.metric 'nll' is not measured; valid: log_likelihood"),
        (
            {**with_replicates("compress"), **with_contrasts(timing("compress", "baseline"))},
            "contrast 'speed' times arm 'compress', of which there are several; got 2",
        ),
        (
            {**with_contrasts(timing("compress", "baseline")), "parameters": {"rerun": "sped"}},
            "parameters.rerun 'sped' is no timed contrast.*valid: speed",
        ),
        ({"parameters": {"rerun": "cost"}}, "parameters.rerun 'cost' is no timed contrast"),
        (
            {"factors": {"compression": {"compress": {"replicates": 2}, "spec": {}}},
             "parameters": {"compression": {"spec": SPECULATE}}},
            "compression.spec: the drafter 'compress' is drawn several times per seed",
        ),
        (
            {"factors": {"compression": {"two": {}}}, "parameters": {"compression": {"two": {
                **COMPRESS, "budget": {"rank": 1}, "allocation": {"multiple_of": 8}}}}},
            "the budget does not pay for rank 8 everywhere",
        ),
        ({"parameters": {"sweep": {**SWEEP, "methods": [{"kind": "svd"}] * 2}}}, "ask the same question"),
    ],
)  # fmt: skip
def test_a_study_that_makes_no_sense_is_refused(change: dict[str, Any], words: str) -> None:
    study = changed(change)
    with pytest.raises(StudyError, match=words):
        plan(study)


def test_arms_of_equal_bytes_are_one_line_of_the_plan() -> None:
    study = low_rank_study({"raw": {**COMPRESS, "method": {"kind": "grc", "normalised": False}},
                            "large": {**COMPRESS, "budget": {"rank": 60}}})  # fmt: skip
    notes = LowRank().design(study, plan(study)).notes

    assert len(notes) == 2
    assert notes[0].startswith("compress, raw: ")
    assert notes[0].endswith(" bytes in q, k, v")
    assert notes[1].endswith("; above break-even in 3 of 3 groups: q+k+v")


def test_a_model_of_unknown_shape_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match="org/unknown"):
        plan(low_rank_study(model="org/unknown"))


def test_more_layers_take_longer_and_more_memory_at_once() -> None:
    def estimate(pick: Callable[[Cell], float], **more: Any) -> float:
        return pick(cell(plan(low_rank_study(**more)), "spectra"))

    assert estimate(lambda c: c.estimate.seconds, layers_at_once=1) > estimate(
        lambda c: c.estimate.seconds, layers_at_once=3
    )
    assert estimate(lambda c: c.estimate.memory_bytes, layers_at_once=1) < estimate(
        lambda c: c.estimate.memory_bytes, layers_at_once=3
    )
