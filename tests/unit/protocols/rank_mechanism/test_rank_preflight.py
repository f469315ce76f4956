from __future__ import annotations

from typing import Any

import pytest
from planted_store import planted_study

from nullarm.protocols.rank_mechanism.parameters import RankMechanismParameters
from nullarm.protocols.rank_mechanism.preflight import shuffle_self_test
from nullarm.protocols.rank_mechanism.protocol import RankMechanism
from nullarm.protocols.rank_mechanism.ranks import RankMap
from nullarm.sites.preflight import Check
from nullarm.study.validate import validated

HUB = "mistralai/Mistral-7B-v0.1@27d67f1b5f57dc0953326b2601d68371d40ea8da"


def self_test(changes: dict[str, Any]) -> Check:
    study = planted_study(changes)
    return shuffle_self_test(validated(RankMechanismParameters, study.parameters, "test"), study)


@pytest.mark.parametrize("model", ["builtin:world", HUB])
def test_shuffles_on_the_models_own_shapes(model: str) -> None:
    check = self_test({"parameters": {"model": model}})
    assert check.ok
    assert check.detail.startswith(
        f"3 on {21 if model == 'builtin:world' else 224} modules with ranks [1, 2, 4, 8]: 3 distinct"
    )
    assert "equal parameters" in check.detail


def test_too_few_permutations_are_found_before_anything_is_trained() -> None:
    check = self_test({
        "parameters": {"target_modules": ["q_proj"]},
        "factors": {"ranks": {"shuffled": {"replicates": 9}}},
    })  # fmt: skip
    assert not check.ok
    assert "the planned test needs 10" in check.detail
    assert "lower the number of shuffles" in check.cure


def test_targets_that_are_not_there_are_named() -> None:
    check = self_test({"parameters": {"target_modules": ["c_attn"]}})
    assert not check.ok
    assert "no module named c_attn" in check.detail


def test_a_broken_shuffle_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def repeating(audited: RankMap, shapes: Any, count: int, rng: Any) -> list[RankMap]:
        return [dict(audited) for _ in range(count)]

    monkeypatch.setattr("nullarm.protocols.rank_mechanism.allocate.shuffled_maps", repeating)
    check = self_test({})
    assert not check.ok
    assert "0 distinct" in check.detail


def test_a_model_of_unknown_shape_is_not_held_up() -> None:
    check = self_test({"parameters": {"model": "someone/something"}})
    assert check.ok
    assert "not tested before the model is here" in check.detail


def test_the_protocol_asks_both() -> None:
    assert [check.name for check in RankMechanism().checks(planted_study())] == ["model", "shuffles"]
