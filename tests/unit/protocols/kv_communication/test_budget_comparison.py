"""Arms against unquantised communication and against the receiver alone, on known right and wrong items."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from nullarm.protocols.kv_communication.budget.arms import POOLED, ArmResult, arm_results
from nullarm.protocols.kv_communication.budget.comparison import Comparison, comparisons
from nullarm.protocols.kv_communication.budget.evaluations import evaluations, usable
from nullarm.protocols.kv_communication.parameters import Channel
from nullarm.stats.families import holm
from nullarm.stats.proportions import wilson
from nullarm.store.study_store import StudyStore
from support.communications import ARMS, FakeArm, N, alone, communication_store, finish, finish_all, modulo


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> StudyStore:
    store = communication_store(tmp_path_factory.mktemp("plain") / "study")
    finish_all(store)
    return store


def arm(store: StudyStore, name: str, dataset: str = "words") -> ArmResult:
    return next(r for r in arm_results(evaluations(store), dataset) if r.arm == name)


def compared(store: StudyStore, dataset: str = "words") -> tuple[Comparison, Comparison]:
    found = comparisons(usable(evaluations(store)), store.lock.study.analysis)
    first, second = (c for c in found if c.dataset == dataset)
    return first, second


def test_an_arm_says_how_well_and_for_how_much(store: StudyStore) -> None:
    c2c = arm(store, "c2c")
    expected = wilson(36, N)
    assert expected is not None
    assert (c2c.n, c2c.accuracy, c2c.wire_bytes, c2c.bytes_per_token) == (N, 0.9, 8000.0, 400.0)
    assert c2c.interval == expected


def test_each_comparison_has_its_reference(store: StudyStore) -> None:
    assert [c.against for c in compared(store)] == ["c2c", "receiver"]
    assert [c.references for c in compared(store)] == [["c2c"], ["receiver"]]
    assert all(len(c.rows) == len(ARMS) - 1 for c in compared(store))


def test_paired_difference_mcnemar_and_equivalence(store: StudyStore) -> None:
    int4 = compared(store)[0].row("int4")
    assert int4 is not None
    assert int4.difference == pytest.approx(-0.1)
    assert int4.p == pytest.approx(2 * 0.5**4)  # McNemar's, of 4 items that only c2c gets right
    assert int4.ends is not None
    assert -0.2 < int4.ends[0] < -0.1 < int4.ends[1] < 0
    assert int4.judgement.p_equivalence == pytest.approx(0.0224, abs=1e-3)
    assert int4.judgement.mde is not None
    assert 0.05 < int4.judgement.mde < 0.2


def test_holm_runs_over_all_arms_of_the_family(store: StudyStore) -> None:
    for comparison in compared(store):
        judged = [row.judgement for row in comparison.rows]
        raw = [1.0 if j.p_equivalence is None else j.p_equivalence for j in judged]
        expected = [None if j.p_equivalence is None else p for j, p in zip(judged, holm(raw).tolist(), strict=True)]
        assert [j.p_adjusted for j in judged] == expected


def test_quantisation_that_changes_no_answer_is_said_to_be_just_that(store: StudyStore) -> None:
    int8 = compared(store)[0].row("int8")
    assert int8 is not None
    assert (int8.difference, int8.p, int8.judgement.verdict) == (0.0, 1.0, "NO_OP")
    assert int8.judgement.reason.startswith("Treated and control scores are identical on all 40 items")


def test_quantisation_can_be_shown_to_cost_nothing(tmp_path: Path) -> None:
    arms = {**{name: ARMS[name] for name in ("receiver", "c2c")},
            "int8": replace(ARMS["int8"], wrong=lambda i: i % 10 == (1 if i > 30 else 0))}  # fmt: skip
    store = communication_store(tmp_path / "study", arms)
    finish_all(store, arms)
    int8 = compared(store)[0].row("int8")
    assert int8 is not None
    assert int8.judgement.verdict == "EQUIVALENT"
    assert compared(store)[0].cheapest_equivalent == int8
    assert compared(store)[1].cheapest_equivalent is None  # to the receiver alone


def test_communication_beats_the_receiver(store: StudyStore) -> None:
    c2c = compared(store)[1].row("c2c")
    assert c2c is not None
    assert c2c.judgement.verdict == "CONFIRMED"
    assert c2c.difference == pytest.approx(0.65)


def test_where_items_come_in_clusters_these_are_the_units(tmp_path: Path) -> None:
    store = communication_store(tmp_path / "study")
    finish_all(store, cluster=modulo(5))
    against_c2c = compared(store)[0]
    row = against_c2c.row("int4")
    assert row is not None
    assert against_c2c.clustered
    assert row.judgement.n_seeds == 5
    # int4 errs where i % 10 is 1, so in one of five clusters: McNemar's 0.125 counts its items one by one.
    assert row.p == pytest.approx(2 * min(row.judgement.p_harm or 1, 1 - (row.judgement.p_harm or 1)))
    assert row.p is not None
    assert row.p > 0.125
    interval = arm(store, "int4").interval
    assert interval is not None
    assert interval.method == "item bootstrap, percentile"


def test_seeds_are_averaged_before_items_are_counted(tmp_path: Path) -> None:
    store = communication_store(tmp_path / "study", seeds=(0, 1))
    finish_all(store)
    row = compared(store)[0].row("int4")
    assert row is not None
    assert (row.judgement.n_seeds, row.result.n) == (N, N)
    assert row.difference == pytest.approx(-0.1)
    assert row.p is not None
    assert 0.01 < row.p < 0.125


def test_data_sets_are_compared_one_by_one_and_together(tmp_path: Path) -> None:
    store = communication_store(tmp_path / "study", datasets=("words", "sums"))
    finish_all(store)
    found = comparisons(evaluations(store), store.lock.study.analysis)
    assert [c.dataset for c in found] == ["words", "words", "sums", "sums", POOLED, POOLED]
    pooled = compared(store, POOLED)[0].row("int4")
    assert pooled is not None
    assert pooled.result.n == 2 * N
    assert pooled.p == pytest.approx(2 * 0.5**8)


def test_arms_with_other_items_are_not_paired(tmp_path: Path) -> None:
    store = communication_store(tmp_path / "study")
    finish_all(store, but=["int4"])
    finish(store, next(c for c in store.plan if c.arm == "int4"), ARMS["int4"], n=30)
    row = compared(store)[0].row("int4")
    assert row is not None
    assert (row.difference, row.p, row.judgement.verdict) == (None, None, "INVALID")
    assert row.judgement.reason == "The items differ: int4 has 30, c2c 40."


def test_an_invalid_cell_is_not_compared(tmp_path: Path) -> None:
    store = communication_store(tmp_path / "study")
    finish_all(store, but=["int4"])
    cell = next(c for c in store.plan if c.arm == "int4")
    finish(store, cell, ARMS["int4"], outcome="invalid", reason="9 of 40 items ended in an error")
    assert compared(store)[0].row("int4") is None


def test_a_two_round_message_costs_its_request_too(tmp_path: Path) -> None:
    arms = {**{name: ARMS[name] for name in ("receiver", "c2c")},
            "asked": FakeArm(Channel(codec="int8", proportion=0.5, order="two_round"), lambda i: False, 1000,
                             request_bytes=24)}  # fmt: skip
    store = communication_store(tmp_path / "study", arms)
    finish_all(store, arms)
    assert arm(store, "asked").wire_bytes == 1024


def test_one_data_set_without_clusters_leaves_those_of_the_other(tmp_path: Path) -> None:
    store = communication_store(tmp_path / "study", datasets=("words", "sums"))
    for cell in store.plan:
        finish(store, cell, ARMS[str(cell.arm)], cluster=modulo(5) if cell.slice == "words" else alone)
    pooled = compared(store, POOLED)[0]
    row = pooled.row("int4")
    assert row is not None
    assert pooled.clustered
    assert row.judgement.n_seeds == 5 + N
    assert not compared(store, "sums")[0].clustered


def test_items_without_a_cluster_are_their_own(tmp_path: Path) -> None:
    store = communication_store(tmp_path / "study")
    finish_all(store, cluster=lambda i: None if i == 0 else str(i % 5))
    row = compared(store)[0].row("int4")
    assert row is not None
    assert (row.judgement.unit, row.judgement.n_seeds) == ("clusters", 6)
    found = arm(store, "int4").by_item
    assert found is not None
    assert found.clusters is not None
    assert found.clusters[:3].tolist() == ["words:000", "words:1", "words:2"]


@pytest.mark.parametrize(("right", "ends"), [(True, (0.438, 1.0)), (False, (0.0, 0.562))])
def test_three_clusters_that_agree_are_three_draws(tmp_path: Path, right: bool, ends: tuple[float, float]) -> None:
    arms = {"receiver": ARMS["receiver"], "sure": FakeArm(Channel(), lambda i: not right)}
    store = communication_store(tmp_path / "study", arms)
    finish_all(store, arms, cluster=modulo(3))
    interval = arm(store, "sure").interval
    assert interval is not None
    assert (interval.low, interval.high) == pytest.approx(ends, abs=1e-3)
    assert interval.method == "Wilson"


def test_seeds_that_agree_on_every_item_are_one_draw_of_items(tmp_path: Path) -> None:
    arms = {"receiver": ARMS["receiver"], "sure": FakeArm(Channel(), lambda i: False)}
    store = communication_store(tmp_path / "study", arms, seeds=(0, 1))
    finish_all(store, arms)
    assert arm(store, "sure").interval == wilson(N, N)


def test_an_obstacle_takes_the_verdicts_and_leaves_the_differences(store: StudyStore) -> None:
    for comparison in comparisons(evaluations(store), store.lock.study.analysis, "this is a smoke run"):
        for row in comparison.rows:
            assert (row.judgement.verdict, row.ends, row.p) == ("INVALID", None, None)
            assert row.judgement.reason == "This is a smoke run."
            assert row.difference == pytest.approx(row.plain_difference)


def test_seeds_that_are_not_complete_are_dropped_where_that_was_declared(tmp_path: Path) -> None:
    rows = {}
    for incomplete in ("invalid", "drop_seed"):
        store = communication_store(tmp_path / incomplete, seeds=(0, 1), incomplete=incomplete)
        for cell in store.plan:
            if (cell.arm, cell.seed) != ("int4", 1):
                finish(store, cell, ARMS[str(cell.arm)])
        rows[incomplete] = compared(store)[0].row("int4")
    kept, refused = rows["drop_seed"], rows["invalid"]
    assert kept is not None
    assert refused is not None
    assert refused.judgement.reason == "The seeds differ: int4 ran at 0, c2c at 0, 1."
    assert (kept.result.seeds, kept.reference.seeds) == ((0,), (0,))
    assert kept.p == pytest.approx(0.125)


def test_each_arm_is_compared_with_the_cache_through_its_own_fusers(tmp_path: Path) -> None:
    arms = {
        "receiver": ARMS["receiver"], "c2c": ARMS["c2c"], "int4": ARMS["int4"],
        "other": FakeArm(Channel(fusers=("other",)), lambda i: i % 2 == 0, 8000),
        "other_int4": FakeArm(Channel(fusers=("other",), codec="int4"), lambda i: i % 2 == 0, 2000),
    }  # fmt: skip
    store = communication_store(tmp_path / "study", arms)
    finish_all(store, arms)
    against = compared(store)[0]
    assert against.against == "the unquantised cache"
    assert {row.result.arm: row.reference.arm for row in against.rows} == {
        "receiver": "c2c", "int4": "c2c", "other": "c2c", "other_int4": "other",
    }  # fmt: skip
    row = against.row("other_int4")
    assert row is not None
    assert row.judgement.verdict == "NO_OP"


def test_means_of_clusters_are_not_the_difference_of_the_accuracies(tmp_path: Path) -> None:
    store = communication_store(tmp_path / "study")
    finish_all(store, cluster=lambda i: "large" if i % 10 else "small")
    row = compared(store)[0].row("int4")
    assert row is not None
    # int4 errs beside c2c on 4 of the 36 items of the large cluster, and on none of the small one.
    assert row.plain_difference == pytest.approx(-4 / 40)
    assert row.difference == pytest.approx(-4 / 36 / 2)


def test_an_interval_of_an_accuracy_stays_between_0_and_1(tmp_path: Path) -> None:
    store = communication_store(tmp_path / "study", seeds=(0, 1))
    perfect, half = (replace(ARMS["c2c"], wrong=wrong) for wrong in (lambda i: False, lambda i: i < N // 2))
    for cell in store.plan:
        if cell.arm == "c2c":
            finish(store, cell, perfect if cell.seed else half)
    interval = arm(store, "c2c").interval

    assert interval is not None
    assert (interval.low, interval.high) == (0.0, 1.0)
