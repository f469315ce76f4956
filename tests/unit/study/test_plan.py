from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nullarm.conduct import prepare
from nullarm.errors import StudyError
from nullarm.study.plan import Cell, Estimate, Plan, _ordered, make_plan
from support.rehearsals import study


def cell(name: str, needs: dict[str, str] | None = None, seconds: float = 1.0, **more: Any) -> Cell:
    return Cell(
        protocol="p", version=1, stage=name, parameters={}, seed=0, needs=needs or {}, estimate=Estimate(seconds, 10),
        **more,
    )  # fmt: skip


def test_cells_follow_what_they_need_and_otherwise_keep_their_order() -> None:
    a = cell("a")
    b = cell("b", {"x": a.id})
    c = cell("c")
    d = cell("d", {"x": b.id, "y": c.id})
    assert [x.stage for x in make_plan([a, b, c, d])] == ["a", "b", "c", "d"]
    assert [x.stage for x in make_plan([d, c, b, a])] == ["c", "a", "b", "d"]


@given(st.integers(0, 12).flatmap(lambda n: st.tuples(st.permutations(range(n)), st.integers(0, 2**32))))
def test_any_order_of_a_graph_becomes_a_valid_one(drawn: tuple[list[int], int]) -> None:
    order, seed = drawn
    needs = {f"{i}": tuple(f"{j}" for j in range(i) if (seed >> ((i * 7 + j) % 32)) & 1) for i in order}
    found = list(_ordered(needs))
    assert sorted(found) == sorted(needs)
    assert all(found.index(need) < found.index(key) for key, wanted in needs.items() for need in wanted)


def test_the_same_question_twice_is_refused() -> None:
    with pytest.raises(StudyError, match="two cells of the plan ask the same question: 'seed 0 · a' and 'seed 0 · a'"):
        make_plan([cell("a"), cell("a", seconds=9.0)])


def test_a_need_that_is_not_planned_is_refused() -> None:
    with pytest.raises(StudyError, match="cell 'seed 0 · b' needs 'probe', which is not planned"):
        make_plan([cell("b", {"probe": cell("a").id})])


def test_needs_in_a_circle_are_refused() -> None:
    with pytest.raises(StudyError, match="go in a circle; got \\['a', 'b', 'a'\\]"):
        list(_ordered({"a": ("b",), "b": ("a",)}))


def test_a_plan_knows_its_cells_by_id_and_has_a_hash_of_them() -> None:
    a, c = cell("a"), cell("c")
    plan = make_plan([a, c])
    assert (len(plan), list(plan), plan.by_id[c.id]) == (2, [a, c], c)
    assert plan.hash == make_plan([c, a]).hash != make_plan([a]).hash
    assert plan.disk_bytes == 20


def test_wall_time_follows_the_dependencies() -> None:
    a = cell("a", seconds=2.0)
    plan = make_plan([a, cell("b", {"x": a.id}), cell("c", {"x": a.id}, 3.0), cell("d")])
    assert plan.wall_seconds(1) == 7.0
    assert plan.wall_seconds(2) == 5.0
    assert plan.wall_seconds(100) == 5.0
    assert Plan(()).wall_seconds(2) == 0.0


def test_labels_are_for_people() -> None:
    assert cell("probe").label == "seed 0 · probe"
    assert cell("retrain", arm="shuffled", replicate=2, slice="q1").label == "seed 0 · shuffled 2 · q1"


def test_a_cell_survives_json() -> None:
    before = cell("a", seconds=4.5, arm="x", replicate=1, slice="s", inputs={"m": "i"}, smoke=True, settings={"k": [1]})
    data = json.loads(json.dumps(before.to_json()))
    after = Cell.from_json(data)
    assert (after, after.id, after.estimate) == (before, before.id, before.estimate)


def test_a_smoke_run_is_another_question() -> None:
    earnest, smoke = prepare(study()).plan, prepare(study({"smoke": True})).plan
    assert len(earnest) == len(smoke) == 6
    assert not set(earnest.by_id) & set(smoke.by_id)


def test_another_name_question_or_price_is_the_same_plan() -> None:
    changes = {"name": "other", "question": "Why?", "budget.max_cost": 3.0, "resources.attempts": 9}
    assert prepare(study(changes)).plan.hash == prepare(study()).plan.hash


def test_a_longer_seed_list_keeps_the_cells_there_are() -> None:
    short, long = prepare(study()).plan, prepare(study({"seeds": [0, 1, 2]})).plan
    assert set(short.by_id) < set(long.by_id)


def test_a_cell_that_needs_the_machine_to_itself_runs_beside_no_other() -> None:
    a, alone, c = cell("a", seconds=2.0), cell("alone", seconds=3.0, exclusive=True), cell("c", seconds=4.0)
    assert make_plan([a, alone, c]).wall_seconds(2) == 9.0
    assert Cell.from_json(alone.to_json()).exclusive
    assert alone.id == cell("alone").id
