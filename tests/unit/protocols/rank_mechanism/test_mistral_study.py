"""The shipped study of the source's full run says what the source's runbook says."""

from __future__ import annotations

from nullarm.conduct import Prepared, prepare
from nullarm.protocols.rank_mechanism.arms import ARMS
from nullarm.protocols.rank_mechanism.parameters import PROJECTIONS, RankMechanismParameters

NAME = "rank_mechanism_mistral_gsm8k"


def parameters(prepared: Prepared) -> RankMechanismParameters:
    found = prepared.protocol.parameters(prepared.study)
    assert isinstance(found, RankMechanismParameters)
    return found


def test_the_full_run_is_the_runbooks() -> None:
    prepared = prepare(NAME)
    study, asked = prepared.study, parameters(prepared)
    assert study.seeds == (42, 43, 44)
    assert set(study.arms) == set(ARMS)
    assert asked.model.startswith("mistralai/Mistral-7B-v0.1@")
    assert len(asked.model.partition("@")[2]) == 40
    training = asked.training
    assert (training.steps, training.batch_size, training.learning_rate, training.precision) == (1200, 8, 3e-4, "bf16")
    assert (asked.probe_rank, asked.alpha, asked.dropout, asked.dtype) == (64, 32, 0.1, "bfloat16")
    assert asked.target_modules == PROJECTIONS
    assert asked.allocation.allowed_ranks == (1, 2, 4, 8, 16, 32, 64)
    assert asked.gate is not None
    assert asked.gate.min_value == 0.15
    assert (asked.task["test_items"], asked.task["max_prompt_tokens"], asked.task["max_completion_tokens"]) == (
        500,
        256,
        128,
    )
    assert asked.train_items is None
    assert (study.resources.gpus, study.budget.price_per_hour) == (1, 0.90)


def test_every_declared_contrast_can_reach_alpha_under_holm() -> None:
    prepared = prepare(NAME)
    analysis = prepared.study.analysis
    least = prepared.design.least_p["mechanism"]
    assert prepared.design.refusals == ()
    assert least is not None
    assert least < analysis.alpha / len(analysis.contrasts)
    fewer = prepare(NAME, overrides=["factors.ranks.shuffled.replicates=2"])
    assert "out of reach" in fewer.design.refusals[0]


def test_quick_is_a_smoke_run_with_an_identity_of_its_own() -> None:
    full, quick = prepare(NAME), prepare(NAME, profile="quick")
    assert quick.study.smoke
    assert parameters(quick).training.steps == 20
    assert parameters(quick).gate is None
    assert not {cell.id for cell in quick.plan} & {cell.id for cell in full.plan}
