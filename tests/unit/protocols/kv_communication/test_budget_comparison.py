"""Arms against unquantised communication and against the receiver alone, on known right and wrong items."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from nullarm.protocols.kv_communication.budget.arms import POOLED, ArmResult, arm_results, receiver_only, unquantised
from nullarm.protocols.kv_communication.budget.comparison import Comparison, comparisons
from nullarm.protocols.kv_communication.budget.evaluations import evaluations, usable
from nullarm.protocols.kv_communication.parameters import Channel
from nullarm.stats.families import holm
from nullarm.stats.proportions import wilson
from nullarm.store.study_store import StudyStore
from support.communications import ARMS, FakeArm, N, communication_store, finish, finish_all


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
    found = evaluations(store)
    assert (unquantised(found), receiver_only(found)) == ("c2c", "receiver")
    assert [c.reference.arm for c in compared(store)] == ["c2c", "receiver"]
    assert all(len(c.rows) == len(ARMS) - 1 for c in compared(store))


def test_wide_numbers_come_first_and_legacy_ones_last(tmp_path: Path) -> None:
    arms = {
        "legacy": FakeArm(Channel(codec="fp32", fusion="as_it_goes"), lambda i: False),
        "half": FakeArm(Channel(codec="fp16"), lambda i: False),
        "full": FakeArm(Channel(codec="fp32"), lambda i: False),
        "part": FakeArm(Channel(codec="fp32", proportion=0.5), lambda i: False),
        "int8": FakeArm(Channel(codec="int8"), lambda i: False),
    }
    store = communication_store(tmp_path / "study", arms)
    finish_all(store, arms)
    assert unquantised(evaluations(store)) == "full"
    assert unquantised(e for e in evaluations(store) if e.arm in ("part", "int8")) is None


def test_paired_difference_mcnemar_and_equivalence(store: StudyStore) -> None:
    int4 = compared(store)[0].row("int4")
    assert int4 is not None
    assert int4.mcnemar is not None
    assert int4.difference == pytest.approx(-0.1)
    assert (int4.mcnemar.only_treated, int4.mcnemar.only_control) == (0, 4)
    assert int4.p == int4.mcnemar.p == pytest.approx(0.125)
    assert int4.ends is not None
    assert -0.2 < int4.ends[0] < -0.1 < int4.ends[1] < 0
    assert int4.judgement.p_equivalence == pytest.approx(0.0224, abs=1e-3)
    assert int4.judgement.mde is not None
    assert 0.05 < int4.judgement.mde < 0.2


def test_holm_runs_over_all_arms_of_the_family(store: StudyStore) -> None:
    for comparison in compared(store):
        raw = [row.p for row in comparison.rows]
        assert None not in raw
        assert [row.p_adjusted for row in comparison.rows] == holm([p or 0.0 for p in raw]).tolist()


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


def test_communication_beats_the_receiver(store: StudyStore) -> None:
    c2c = compared(store)[1].row("c2c")
    assert c2c is not None
    assert c2c.judgement.verdict == "CONFIRMED"
    assert c2c.difference == pytest.approx(0.65)


def test_where_items_come_in_clusters_these_are_the_units(tmp_path: Path) -> None:
    store = communication_store(tmp_path / "study")
    finish_all(store, clusters=5)
    against_c2c = compared(store)[0]
    row = against_c2c.row("int4")
    assert row is not None
    assert row.mcnemar is not None
    assert against_c2c.unit == "clusters"
    assert row.judgement.n_seeds == 5
    # int4 errs where i % 10 is 1, so in one of five clusters: McNemar's 0.125 counts its items one by one.
    assert row.p == pytest.approx(2 * min(row.judgement.p_harm or 1, 1 - (row.judgement.p_harm or 1)))
    assert row.p is not None
    assert row.p > row.mcnemar.p
    interval = arm(store, "int4").interval
    assert interval is not None
    assert interval.method == "item bootstrap, percentile"


def test_seeds_are_averaged_before_items_are_counted(tmp_path: Path) -> None:
    store = communication_store(tmp_path / "study", seeds=(0, 1))
    finish_all(store)
    row = compared(store)[0].row("int4")
    assert row is not None
    assert (row.mcnemar, row.judgement.n_seeds, row.result.n) == (None, N, N)
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
    assert (row.difference, row.p, row.p_adjusted, row.judgement.verdict) == (None, None, None, "INVALID")
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
