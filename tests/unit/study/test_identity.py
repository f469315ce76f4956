from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from nullarm.protocols.rank_mechanism.parameters import LEFT_OUT as RANK_MECHANISM_LEFT_OUT
from nullarm.protocols.rank_mechanism.parameters import RankMechanismParameters
from nullarm.study import identity
from nullarm.study.identity import LEFT_OUT, canonical_json, cell_id, content_hash, identifying
from nullarm.study.plan import Cell, Estimate

CELL = Cell(
    protocol="p", version=1, stage="s", parameters={"a": 1, "b": {"c": [0.5]}}, seed=3, arm="x", replicate=2,
    slice="0", inputs={"model": "directory:abc"}, needs={"probe": "0123"}, settings={"path": "/m"},
    estimate=Estimate(1.0, 2, 3),
)  # fmt: skip

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(json_values)
def test_canonical_json_is_json_of_the_same_value(value: Any) -> None:
    assert json.loads(canonical_json(value)) == value


@given(json_values)
def test_a_round_trip_through_json_keeps_the_hash(value: Any) -> None:
    assert content_hash(json.loads(json.dumps(value))) == content_hash(value)
    assert content_hash(json.loads(canonical_json(value))) == content_hash(value)


@given(st.dictionaries(st.text(), json_values, max_size=5))
def test_the_order_of_keys_does_not_matter(value: dict[str, Any]) -> None:
    assert canonical_json(dict(reversed(value.items()))) == canonical_json(value)


@given(json_values, json_values)
def test_different_values_differ(one: Any, other: Any) -> None:
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (canonical_json(one) == canonical_json(other)) == (same or _equal(one, other))


def _equal(one: Any, other: Any) -> bool:
    """Equal as a study means it: 1.0 is 1, but True is not 1."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_equal, one, other))
    return one == other and isinstance(one, bool) == isinstance(other, bool)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"b": 1, "a": [1.0, 0.5, -0.0]}, b'{"a":[1,0.5,0],"b":1}'),
        ("Größe", b'"Gr\\u00f6\\u00dfe"'),
        ([True, None, 1e-4, 1e22], b"[true,null,0.0001,1e+22]"),
        ((1, 2), b"[1,2]"),
    ],
)
def test_the_form_is_fixed(value: Any, text: bytes) -> None:
    assert canonical_json(value) == text


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (float("nan"), "not a finite number: nan"),
        ([{"a": float("inf")}], "not a finite number: inf"),
        ({1: 2}, "a key is not text: 1"),
        ({"a": {1, 2}}, "no JSON form for set"),
        (b"x", "no JSON form for bytes"),
    ],
)
def test_what_has_no_canonical_form_is_refused(value: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        canonical_json(value)


def test_the_id_of_a_known_cell_never_changes() -> None:
    assert CELL.id == "c44974914356dee97f64"


@pytest.mark.parametrize(
    "change",
    [
        {"protocol": "q"},
        {"version": 2},
        {"stage": "t"},
        {"parameters": {"a": 1, "b": {"c": [0.25]}}},
        {"seed": 4},
        {"arm": "y"},
        {"replicate": 3},
        {"slice": "1"},
        {"inputs": {"model": "directory:abd"}},
        {"needs": {"probe": "0124"}},
        {"smoke": True},
    ],
)
def test_everything_that_asks_another_question_changes_the_id(change: dict[str, Any]) -> None:
    assert replace(CELL, **change).id != CELL.id


def test_settings_and_estimates_are_left_out() -> None:
    assert replace(CELL, settings={"path": "/elsewhere", "batch": 8}).id == CELL.id
    assert replace(CELL, estimate=Estimate(99.0)).id == CELL.id


def test_every_field_of_a_cell_is_in_the_identity_or_left_out_on_purpose() -> None:
    known = {name.replace("protocol_version", "version") for name in CELL.identity}
    assert {f.name for f in fields(Cell)} - known == {"settings", "exclusive", "estimate"}


def test_a_new_version_of_the_identity_makes_new_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    before = cell_id({"a": 1})
    monkeypatch.setattr(identity, "IDENTITY_VERSION", identity.IDENTITY_VERSION + 1)
    assert cell_id({"a": 1}) != before


def test_what_is_left_out_has_a_reason() -> None:
    for left_out in (LEFT_OUT, RANK_MECHANISM_LEFT_OUT):
        assert left_out
        assert all(reason for reason in left_out.values())


class _Inner(BaseModel):
    kept: int = 1
    dropped: int = 2


class _Outer(BaseModel):
    inner: _Inner = _Inner()
    path: str = "/m"


def test_parameters_that_are_left_out_do_not_identify() -> None:
    left_out = {"path": "named by content", "inner.dropped": "speed only"}
    assert identifying(_Outer(), left_out) == {"inner": {"kept": 1}}
    assert identifying(_Outer(path="/other"), left_out) == identifying(_Outer(), left_out)
    with pytest.raises(KeyError):
        identifying(_Outer(), {"inner.gone": "a typing mistake in the list"})


def test_the_parameters_left_out_by_rank_mechanism_exist() -> None:
    parameters = RankMechanismParameters.model_validate(
        {
            "model": "builtin:world",
            "task": {"kind": "world_relations"},
            "probe_rank": 8,
            "alpha": 16,
            "training": {"steps": 1, "batch_size": 1, "learning_rate": 0.1},
            "allocation": {"allowed_ranks": [1, 8]},
        }
    )
    kept = identifying(parameters, RANK_MECHANISM_LEFT_OUT)
    assert "model" not in kept
    assert "checkpoint_every" not in kept["training"]
