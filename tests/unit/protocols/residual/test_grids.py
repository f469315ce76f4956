"""Grids: the numbers of the tables by layer and position, whichever way they came."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nullarm.errors import FormatError, UsageError
from nullarm.protocols.residual.export.grids import (
    PAIR_METRICS,
    RUN_METRICS,
    build_logit_grid,
    build_residual_grid,
    build_run_grid,
    build_topk_grid,
)
from nullarm.protocols.residual.export.read import read_records
from nullarm.protocols.residual.export.records import records_of
from nullarm.protocols.residual.export.sources import records_from
from nullarm.protocols.residual.export.write import write_json
from nullarm.protocols.residual.runs import multi_pass
from nullarm.store.record import FinishedCell
from support.captures import BLOCKS, TOKENS, VARIANTS, capture_store, finish_capture, logit, scalar, shift

PROMPTS = [(prompt, variant) for prompt in range(len(TOKENS)) for variant in VARIANTS]


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> FinishedCell:
    with capture_store(tmp_path_factory.mktemp("single") / "study") as store:
        return finish_capture(store, next(iter(store.plan)))


@pytest.fixture(scope="module")
def multi(tmp_path_factory: pytest.TempPathFactory) -> FinishedCell:
    with capture_store(tmp_path_factory.mktemp("multi") / "study", passes=multi_pass()) as store:
        return finish_capture(store, next(iter(store.plan)), passes=multi_pass())


def expected(prompt: int, variant: str, record: str, metric: str) -> Any:
    return np.array(
        [
            [scalar(prompt, variant, record, layer, p, metric) for p in range(len(TOKENS[prompt]))]
            for layer in range(BLOCKS)
        ]
    )


def test_a_grid_is_the_table_by_layer_and_position(single: FinishedCell) -> None:
    grids = build_residual_grid(records_of(single), "kl_div")
    assert [(g.prompt, g.variant, g.record, g.metric) for g in grids] == [(*p, "default", "kl_div") for p in PROMPTS]
    for grid in grids:
        assert grid.tokens == TOKENS[grid.prompt]
        assert grid.layers == (0, 1)
        assert grid.positions == tuple(range(len(TOKENS[grid.prompt])))
        assert grid.values.dtype == np.float64
        np.testing.assert_array_equal(grid.values, expected(grid.prompt, grid.variant, "base-sft", "kl_div"))


@pytest.mark.parametrize("metric", PAIR_METRICS)
def test_tables_and_json_give_the_same_grids(single: FinishedCell, tmp_path: Path, metric: str) -> None:
    (path,) = write_json(single, tmp_path)
    from_tables = build_residual_grid(records_of(single), metric)
    from_json = build_residual_grid(read_records(path), metric)
    assert len(from_tables) == len(from_json) == len(PROMPTS)
    for ours, theirs in zip(from_tables, from_json, strict=True):
        assert np.isfinite(ours.values).all()
        np.testing.assert_array_equal(ours.values, theirs.values)


@pytest.mark.parametrize(
    ("metric", "of_table", "record"),
    [("cosine_sim", "cosine", "base-sft"), ("norm_diff", "norm_diff", "base-sft"), ("entropy_base", "entropy", "base"),
     ("norm_sft", "norm", "sft"), ("base_cosine_prev", "cosine_prev", "base"), ("sft_norm_delta", "norm_delta", "sft")],
)  # fmt: skip
def test_every_metric_comes_from_its_record(single: FinishedCell, metric: str, of_table: str, record: str) -> None:
    for grid in build_residual_grid(records_of(single), metric):
        np.testing.assert_array_equal(grid.values, expected(grid.prompt, grid.variant, record, of_table))


@pytest.mark.parametrize(("metric", "of_table"), [("entropy_delta", "entropy"), ("norm_delta", "norm")])
def test_a_difference_is_fine_tuned_minus_base(single: FinishedCell, metric: str, of_table: str) -> None:
    for grid in build_residual_grid(records_of(single), metric):
        sides = [expected(grid.prompt, grid.variant, side, of_table) for side in ("base", "sft")]
        np.testing.assert_array_equal(grid.values, sides[1] - sides[0])


def test_a_multi_pass_record_has_a_grid_per_pair(multi: FinishedCell) -> None:
    grids = build_residual_grid(records_of(multi), "kl_div")
    assert [g.record for g in grids[:6]] == ["BB-BS", "BB-SB", "BB-SS", "BS-SB", "BS-SS", "SB-SS"]
    assert len(grids) == 6 * len(PROMPTS)
    np.testing.assert_array_equal(grids[3].values, expected(0, "identity", "BS-SB", "kl_div"))


@pytest.mark.parametrize("metric", RUN_METRICS)
def test_a_run_has_a_grid(multi: FinishedCell, metric: str) -> None:
    grids = build_run_grid(records_of(multi), metric)
    assert [g.record for g in grids[:4]] == ["BB", "BS", "SB", "SS"]
    for grid in grids:
        np.testing.assert_array_equal(grid.values, expected(grid.prompt, grid.variant, grid.record, metric))


def test_single_pass_records_have_no_runs(single: FinishedCell) -> None:
    assert build_run_grid(records_of(single), "norm") == []


def test_logits_of_a_tracked_token(single: FinishedCell) -> None:
    def at(side: str) -> Any:
        return np.array([[logit(1, "identity", side, k, p, 5) for p in range(4)] for k in range(BLOCKS)])

    grids = {source: build_logit_grid(records_of(single), 5, source)[2] for source in ("base", "sft", "diff")}
    np.testing.assert_array_equal(grids["base"].values, at("base"))
    np.testing.assert_array_equal(grids["sft"].values, at("sft"))
    np.testing.assert_array_equal(grids["diff"].values, at("sft") - at("base"))
    assert grids["diff"].label == "logit_diff:5 · default · prompt 1 · identity"


def test_shifts_of_a_token_among_the_top_k(single: FinishedCell) -> None:
    token, value = shift(0, "base-sft", 1, 2, 1)
    up = build_topk_grid(records_of(single), token)[0]
    down = build_topk_grid(records_of(single), token, "decreased")[0]
    assert (up.values[1, 2], down.values[1, 2]) == (value, -value)
    absent = build_topk_grid(records_of(single), 999)[0]
    assert np.isnan(absent.values).all()


def test_a_number_that_is_missing_is_nan(single: FinishedCell) -> None:
    record = next(records_of(single))
    record["layers"]["1"]["2"]["kl_div"] = None
    del record["layers"]["0"]["1"]
    record["layers"]["0"]["0"]["entropy_sft"] = None
    (grid,) = build_residual_grid([record], "kl_div")
    assert np.argwhere(np.isnan(grid.values)).tolist() == [[0, 1], [1, 2]]
    (delta,) = build_residual_grid([record], "entropy_delta")
    assert np.argwhere(np.isnan(delta.values)).tolist() == [[0, 0], [0, 1]]


def test_positions_that_were_left_out_are_no_columns(single: FinishedCell) -> None:
    record = next(records_of(single))
    for positions in record["layers"].values():
        del positions["1"]
    (grid,) = build_residual_grid([record], "kl_div")
    assert (grid.positions, grid.tokens) == ((0, 2), ("A", "Ġhat"))


def test_layers_and_positions_are_in_the_order_of_their_numbers() -> None:
    at = {str(p): {"kl_div": float(p)} for p in (10, 9, 2)}
    record = {"tokens": [str(i) for i in range(11)], "layers": {"10": at, "9": at}}
    (grid,) = build_residual_grid([record], "kl_div")
    assert (grid.layers, grid.positions, grid.tokens) == ((9, 10), (2, 9, 10), ("2", "9", "10"))
    assert grid.values[0].tolist() == [2.0, 9.0, 10.0]
    assert (grid.prompt, grid.variant, grid.record) == (0, "identity", "default")


def test_a_grid_as_a_frame(single: FinishedCell) -> None:
    frame = build_residual_grid(records_of(single), "kl_div")[0].to_frame()
    assert frame.index.name == "layer"
    assert list(frame.columns) == [(0, "A"), (1, "Ġred"), (2, "Ġhat")]
    assert frame.loc[1, (2, "Ġhat")] == scalar(0, "identity", "base-sft", 1, 2, "kl_div")


def test_an_unknown_metric_is_named_with_those_there_are(multi: FinishedCell) -> None:
    with pytest.raises(
        UsageError, match=r"comparisons have no metric 'kldiv' \(did you mean 'kl_div'\?\); valid: entropy"
    ):
        build_residual_grid(records_of(multi), "kldiv")
    with pytest.raises(UsageError, match="runs have no metric 'kl_div'; valid: entropy, norm, norm_delta, cosine_prev"):
        build_run_grid(records_of(multi), "kl_div")


def test_a_token_that_was_not_tracked_is_named(single: FinishedCell) -> None:
    with pytest.raises(UsageError, match=r"token 4 was not tracked \(logit_diff:4 · default .*; valid: 3, 5"):
        build_logit_grid(records_of(single), 4)
    with pytest.raises(UsageError, match=r"token 4 was not tracked .*; valid: no token was"):
        build_logit_grid([{"tokens": [], "layers": {}}], 4)


def test_a_value_that_is_no_number_is_named() -> None:
    record = {"tokens": ["a"], "layers": {"3": {"0": {"kl_div": "much"}}}}
    with pytest.raises(FormatError, match="kl_div of default at layer 3, position 0 is no number; got 'much'"):
        build_residual_grid([record], "kl_div")


def test_records_come_from_files_cells_and_studies(single: FinishedCell, tmp_path: Path) -> None:
    (path,) = write_json(single, tmp_path)
    records = list(records_of(single))
    root = single.paths.root
    for place in (path, str(path), root, root.parent.parent):
        assert list(records_from(place)) == records


def test_a_study_without_a_finished_capture_says_so(tmp_path: Path) -> None:
    capture_store(tmp_path / "study").close()
    with pytest.raises(UsageError, match="study holds no finished capture; next: nullarm status"):
        list(records_from(tmp_path / "study"))


@pytest.mark.parametrize(("name", "words"), [("nothing", "does not exist"), (".", "holds no residual comparison")])
def test_a_place_without_results_says_what_there_might_be(tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises(UsageError, match=f"{words}; valid: a JSON file of the source's schema, a study"):
        list(records_from(tmp_path / name))
