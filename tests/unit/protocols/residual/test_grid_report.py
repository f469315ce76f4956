"""Summaries: means and maxima that agree with the tables, hotspots where they were planted, exports that hold all."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from nullarm.errors import UsageError
from nullarm.protocols.residual.export.summary import COLUMNS, Request, Row, summarise
from nullarm.protocols.residual.export.text import export, rows_of, text_of
from nullarm.protocols.residual.export.write import write_json
from nullarm.protocols.residual.runs import multi_pass
from nullarm.store.record import FinishedCell
from support.captures import BLOCKS, HOTSPOT, TOKENS, capture_store, finish_capture, logit, scalar


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> FinishedCell:
    with capture_store(tmp_path_factory.mktemp("single") / "study") as store:
        return finish_capture(store, next(iter(store.plan)))


@pytest.fixture(scope="module")
def multi(tmp_path_factory: pytest.TempPathFactory) -> FinishedCell:
    with capture_store(tmp_path_factory.mktemp("multi") / "study", passes=multi_pass()) as store:
        return finish_capture(store, next(iter(store.plan)), passes=multi_pass())


def rows(finished: FinishedCell, kind: str, request: Request, **named: str) -> list[Row]:
    found = rows_of(summarise([finished.paths.root], request))
    return [row for row in found if row["kind"] == kind and named.items() <= row.items()]


def values(metric: str, record: str, *, layer: int | None = None, position: int | None = None) -> list[Any]:
    return [
        scalar(prompt, "identity", record, k, p, metric)
        for prompt, tokens in enumerate(TOKENS)
        for k in range(BLOCKS)
        for p in range(len(tokens))
        if layer in (None, k) and position in (None, p)
    ]


def test_along_layers(single: FinishedCell) -> None:
    found = rows(single, "summary", Request(("kl_div",)), variant="identity")
    assert [row["layer"] for row in found] == [0, 1]
    for row in found:
        known = values("kl_div", "base-sft", layer=row["layer"])
        assert (row["count"], row["max"]) == (7, max(known))
        assert row["mean"] == pytest.approx(np.mean(known))
        assert (row["position"], row["token"], row["value"]) == (None, None, None)


def test_along_positions(single: FinishedCell) -> None:
    found = rows(single, "summary", Request(axis="token"), variant="identity")
    assert [(row["position"], row["count"]) for row in found] == [(0, 4), (1, 4), (2, 4), (3, 2)]
    for row in found:
        known = values("kl_div", "base-sft", position=row["position"])
        assert row["max"] == max(known)
        assert row["mean"] == pytest.approx(np.mean(known))
    assert [row["token"] for row in found] == [None, None, None, TOKENS[1][3]]  # the prompts differ in the first three


def test_the_planted_hotspot_is_the_first(single: FinishedCell) -> None:
    first = rows(single, "hotspot", Request(top_n=3), variant="identity")[0]
    assert HOTSPOT.items() <= first.items()
    assert first["token"] == "Ġno"


def test_hotspots_are_the_largest_in_order(single: FinishedCell) -> None:
    found = rows(single, "hotspot", Request(top_n=4), variant="identity")
    assert [row["value"] for row in found] == sorted(values("kl_div", "base-sft"), reverse=True)[:4]


def test_hotspots_of_a_cosine_are_the_smallest(single: FinishedCell) -> None:
    found = rows(single, "hotspot", Request(("cosine_sim",), top_n=4), variant="identity")
    assert [row["value"] for row in found] == sorted(values("cosine", "base-sft"))[:4]


def test_hotspots_of_a_difference_are_the_largest_in_magnitude(single: FinishedCell) -> None:
    found = rows(single, "hotspot", Request(("entropy_delta",), top_n=14), variant="identity")
    sides = [values("entropy", side) for side in ("base", "sft")]
    known = [right - left for left, right in zip(*sides, strict=True)]
    assert min(known) < 0 < max(known)
    assert [abs(row["value"]) for row in found] == sorted(map(abs, known), reverse=True)


def test_no_hotspots_when_none_are_asked_for(single: FinishedCell) -> None:
    assert rows(single, "hotspot", Request(top_n=0)) == []


def test_runs(multi: FinishedCell) -> None:
    found = rows(multi, "summary", Request(("norm",), record_type="runs"), variant="identity", record="SB")
    assert [row["mean"] for row in found] == [pytest.approx(np.mean(values("norm", "SB", layer=k))) for k in (0, 1)]


def test_the_default_metric_of_runs_is_one_that_they_have(multi: FinishedCell) -> None:
    assert {row["metric"] for row in rows(multi, "summary", Request(record_type="runs"))} == {"entropy"}


def test_pairs_of_a_multi_pass_capture_are_kept_apart(multi: FinishedCell) -> None:
    found = rows(multi, "summary", Request(), variant="identity", record="BS-SS")
    assert [row["max"] for row in found] == [max(values("kl_div", "BS-SS", layer=k)) for k in (0, 1)]


def test_the_base_model_against_the_fine_tuned_one_comes_first(multi: FinishedCell) -> None:
    found = [summary.record for summary in summarise([multi.paths.root], Request()) if summary.variant == "identity"]
    assert found == ["BB-SS", "BB-BS", "BB-SB", "BS-SB", "BS-SS", "SB-SS"]


def test_the_first_comparison_goes_by_what_the_runs_are_and_not_by_their_names(
    multi: FinishedCell, tmp_path: Path
) -> None:
    names = {"BB": "SS", "BS": "BS", "SB": "SB", "SS": "BB"}
    records = json.loads(write_json(multi, tmp_path)[0].read_text())
    for record in records:
        for run in record["runs"]:
            run["name"] = names[run["name"]]
        for pair in record["pairwise"]:
            pair |= {
                "base_run": names[pair["base_run"]],
                "sft_run": names[pair["sft_run"]],
                "name": "of " + pair["name"],
            }
    path = tmp_path / "renamed.json"
    path.write_text(json.dumps(records))
    assert summarise([path], Request())[0].record == "of BB-SS"


def test_only_the_named_comparisons(multi: FinishedCell) -> None:
    found = summarise([multi.paths.root], Request(records=("BS-SS", "BB-SS")))
    assert [(summary.variant, summary.record) for summary in found] == [
        (variant, record) for variant in ("identity", "mirror_halves") for record in ("BB-SS", "BS-SS")
    ]


def test_a_comparison_that_is_not_there_is_refused_with_those_that_are(single: FinishedCell) -> None:
    with pytest.raises(UsageError, match=r"no comparison 'defualt' \(did you mean 'default'\?\); valid: default"):
        summarise([single.paths.root], Request(records=("default", "defualt")))


def test_logits_of_a_tracked_token_by_layer(single: FinishedCell) -> None:
    request = Request(("kl_div",), token_ids=(3,), logit_source="sft")
    found = rows(single, "summary", request, variant="identity", metric="logit_sft:3")
    for row in found:
        known = [logit(q, "identity", "sft", row["layer"], p, 3) for q in (0, 1) for p in range(len(TOKENS[q]))]
        assert row["mean"] == pytest.approx(np.mean(known))
    assert len(found) == BLOCKS


def test_what_is_missing_is_left_out_of_means(single: FinishedCell, tmp_path: Path) -> None:
    (path,) = write_json(single, tmp_path)
    records = json.loads(path.read_text())
    for number, record in enumerate(records):
        record["layers"]["0"] = {p: {**at, "kl_div": None} for p, at in record["layers"]["0"].items()}
        record["layers"]["1"]["2"]["kl_div"] = None if number == 2 else 1.0
    path.write_text(json.dumps(records))
    found = [row for row in rows_of(summarise([path], Request())) if row["variant"] == "identity"]
    assert [(row["layer"], row["count"]) for row in found if row["kind"] == "summary"] == [(1, 6)]
    assert all(row["layer"] == 1 and row["value"] is not None for row in found if row["kind"] == "hotspot")


def test_inputs_of_one_name_are_kept_apart(single: FinishedCell, tmp_path: Path) -> None:
    paths = [write_json(single, tmp_path / name)[0] for name in ("a", "b")]
    found = summarise(paths, Request())
    assert [summary.input for summary in found] == [str(path) for path in paths for _ in (0, 1)]


def test_a_study_gives_all_its_captures(tmp_path: Path) -> None:
    with capture_store(tmp_path / "study", ("qwen", "llama")) as store:
        for cell in store.plan:
            finish_capture(store, cell)
    found = summarise([tmp_path / "study"], Request())
    assert list(dict.fromkeys(summary.input for summary in found)) == [
        f"{tmp_path / 'study'}: seed 0 · qwen", f"{tmp_path / 'study'}: seed 0 · llama",
    ]  # fmt: skip


def test_the_text_shows_no_character_that_acts(single: FinishedCell) -> None:
    text = text_of(summarise([single.paths.root], Request(top_n=50)))
    assert "\x1b" not in text
    assert r'"\u001b[31m"' in text
    assert r'"\n"' in text


def test_the_text_has_the_numbers(single: FinishedCell) -> None:
    lines = text_of(summarise([single.paths.root], Request(top_n=1))).splitlines()
    mean = np.mean(values("kl_div", "base-sft", layer=1))
    assert lines[0] == f"{single.paths.root} · identity · default · kl_div"
    assert lines[1].split() == ["layer", "count", "mean", "max"]
    assert lines[3].split() == ["1", "7", f"{mean:.2f}", "64.00"]
    assert [line.split() for line in lines[4:7]] == [
        ["hotspots"], ["layer", "position", "token", "value", "prompt"], ["1", "2", '"Ġno"', "64.00", "1"],
    ]  # fmt: skip


def test_tokens_are_shown_where_prompts_share_one(single: FinishedCell, tmp_path: Path) -> None:
    (path,) = write_json(single, tmp_path)
    records = json.loads(path.read_text())
    request = Request(axis="token", top_n=0)
    assert text_of(summarise([path], request)).splitlines()[1].split() == ["position", "token", "count", "mean", "max"]
    for number, record in enumerate(records):
        record["tokens"] = [f"{number}{token}" for token in record["tokens"]]
        for positions in record["layers"].values():
            positions.pop("3", None)
    path.write_text(json.dumps(records))
    lines = text_of(summarise([path], request)).splitlines()
    assert lines[1].split() == ["position", "count", "mean", "max"]
    assert lines[2].split()[:2] == ["0", "4"]


def test_exports_hold_every_row(single: FinishedCell, tmp_path: Path) -> None:
    found = summarise([single.paths.root], Request(("kl_div", "cosine_sim")))
    for suffix in ("csv", "json", "parquet"):
        export(found, tmp_path / f"x.{suffix}")
    expected = rows_of(found)
    assert pq.read_table(tmp_path / "x.parquet").to_pylist() == expected
    assert json.loads((tmp_path / "x.json").read_text()) == expected
    with open(tmp_path / "x.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert tuple(table[0]) == COLUMNS
    assert [float(row["mean"]) for row in table if row["mean"]] == [row["mean"] for row in expected if row["mean"]]
    assert {row["token"] for row in table} >= {"'=SUM", "␛[31m"}  # neither a formula nor a control character


def test_an_export_of_no_known_form_is_refused(single: FinishedCell, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"the suffix says no form; got '.txt'; valid: .csv, .json, .parquet"):
        export(summarise([single.paths.root], Request()), tmp_path / "x.txt")


def test_runs_of_a_single_pass_capture_are_refused(single: FinishedCell) -> None:
    with pytest.raises(UsageError, match="no records of type 'runs'; valid: `runs` needs a multi-pass capture"):
        summarise([single.paths.root], Request(record_type="runs"))


def test_logits_of_runs_are_refused(multi: FinishedCell) -> None:
    with pytest.raises(UsageError, match="summarised for comparisons; valid: --record-type pairwise"):
        summarise([multi.paths.root], Request(record_type="runs", token_ids=(3,)))
