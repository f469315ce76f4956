"""`budget_curve.csv` and its picture."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from nullarm.protocols.kv_communication.budget.curve import rows, write_curve
from nullarm.protocols.kv_communication.budget.evaluations import evaluations
from nullarm.protocols.kv_communication.budget.points import Point, curve_points, frontier
from nullarm.protocols.kv_communication.parameters import Link
from nullarm.store.study_store import StudyStore
from support.communications import ARMS, communication_store, finish, finish_all

SOURCE = (
    "run_tag,dataset,kv_quant_scheme,kv_cache_proportion,kv_cache_order_mode,base_model,avg_input_length,"
    "bytes_per_sequence,bytes_per_sequence_mib,accuracy,run_root"
).split(",")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> StudyStore:
    store = communication_store(tmp_path_factory.mktemp("plain") / "study")
    finish_all(store)
    return store


def points_of(store: StudyStore) -> list[Point]:
    return curve_points(evaluations(store))


def read(path: Path) -> dict[str, dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return {row["arm"]: row for row in csv.DictReader(file)}


def test_the_sources_columns_come_first(store: StudyStore, tmp_path: Path) -> None:
    (path,) = write_curve(points_of(store), tmp_path, plot=False)
    assert path == tmp_path / "budget_curve.csv"
    header = path.read_text(encoding="utf-8").splitlines()[0].split(",")
    assert header[: len(SOURCE)] == SOURCE
    assert header[len(SOURCE) :] == [
        "measured_bytes_mean", "formula_bytes", "accuracy_low", "accuracy_high", "n", "pareto_membership", "seed",
        "arm", "transfer_s", "total_s",
    ]  # fmt: skip


def test_a_line_says_what_was_measured(store: StudyStore, tmp_path: Path) -> None:
    line = read(write_curve(points_of(store), tmp_path, plot=False)[0])["int8_p0p5_back"]
    transfer = Link().seconds(1900)
    assert line["run_tag"] == "step3_int8_p0p5_back_little"
    assert line["run_root"] == str(store.paths.output / "step_1_kv_ptq" / "step3_int8_p0p5_back_little")
    assert [line[name] for name in SOURCE[1:10]] == [
        "words", "int8", "0.5", "back", "org/receiver", "20.0", "1900.0", repr(1900 / 2**20), "0.8",
    ]  # fmt: skip
    assert (line["measured_bytes_mean"], line["formula_bytes"], line["n"], line["seed"]) == (
        "1900.0",
        "1900.0",
        "40",
        "0",
    )
    assert float(line["transfer_s"]) == pytest.approx(transfer)
    assert float(line["total_s"]) == pytest.approx(6 * 0.125 + transfer)
    assert float(line["accuracy_low"]) < 0.8 < float(line["accuracy_high"])


def test_what_sends_no_cache_has_no_scheme(store: StudyStore, tmp_path: Path) -> None:
    lines = read(write_curve(points_of(store), tmp_path, plot=False)[0])
    assert [lines["receiver"][name] for name in SOURCE[2:5]] == ["", "", ""]
    assert (lines["receiver"]["bytes_per_sequence"], lines["receiver"]["transfer_s"]) == ("0.0", "0.0")
    assert lines["text"]["bytes_per_sequence"] == "250.0"


def test_a_size_that_depends_on_the_data_has_no_formula(tmp_path: Path) -> None:
    arms = {**ARMS, "int8": replace(ARMS["int8"], formula=False)}
    store = communication_store(tmp_path / "study", arms)
    finish_all(store, arms)
    assert read(write_curve(points_of(store), tmp_path, plot=False)[0])["int8"]["formula_bytes"] == ""


def test_the_frontier_is_made_of_options_only(store: StudyStore) -> None:
    points = points_of(store)
    assert [p.result.arm for p in frontier(points)] == ["receiver", "int8_p0p5_back", "int8"]
    shares = {p.result.arm: p.membership for p in points}
    assert shares["zeroed"] is None
    assert shares["sharer"] is None
    assert shares["text"] is None
    assert (shares["receiver"], shares["c2c"]) == (1.0, 0.0)


def test_an_assumed_length_scales_what_was_measured(store: StudyStore) -> None:
    line = next(row for row in rows(points_of(store), 100) if row.arm == "c2c")
    assert (line.bytes_per_sequence, line.measured_bytes_mean, line.avg_input_length) == (40_000.0, 8_000.0, 20.0)


def test_each_seed_has_its_line(tmp_path: Path) -> None:
    store = communication_store(tmp_path / "study", seeds=(0, 3))
    finish_all(store)
    points = points_of(store)
    assert len(points) == len(ARMS)
    assert {(row.arm, row.seed) for row in rows(points)} == {(arm, seed) for arm in ARMS for seed in (0, 3)}


def test_studies_are_merged_and_compete_where_they_asked_the_same(tmp_path: Path) -> None:
    first, second, third = (communication_store(tmp_path / name, {n: ARMS[n] for n in names}) for name, names in (
        ("a", ("receiver", "c2c")), ("b", ("text", "int8")), ("c", ("text", "int4")),
    ))  # fmt: skip
    finish_all(first)
    finish_all(second)
    for cell in third.plan:
        finish(third, cell, ARMS[str(cell.arm)], n=20)
    found = [e for store in (first, second, third) for e in evaluations(store)]
    placed = {(p.result.arm, p.result.n): p.on_frontier for p in curve_points(found)}
    assert placed == {
        ("receiver", 40): True, ("c2c", 40): False, ("text", 40): False, ("int8", 40): True,
        ("text", 20): False, ("int4", 20): True,
    }  # fmt: skip


def test_one_picture_for_each_data_set(tmp_path: Path) -> None:
    store = communication_store(tmp_path / "study", datasets=("words", "sums"))
    finish_all(store)
    files = write_curve(points_of(store), tmp_path / "drawn")
    assert [f.name for f in files] == ["budget_curve.csv", "budget_curve_words.png", "budget_curve_sums.png"]
    for path in files[1:]:
        head = path.read_bytes()[:24]
        assert head.startswith(b"\x89PNG")
        assert int.from_bytes(head[16:20], "big") == 1125


def test_a_picture_of_nothing_but_the_receiver(tmp_path: Path) -> None:
    store = communication_store(tmp_path / "study")
    finish(store, next(iter(store.plan)), ARMS["receiver"])
    assert len(write_curve(points_of(store), tmp_path / "drawn")) == 2
