from __future__ import annotations

from dataclasses import FrozenInstanceError, replace

import pytest
from sample_report import sample

from nullarm.report import (
    CellRef,
    Document,
    HeatmapPanel,
    IntervalPlot,
    IntervalRow,
    Section,
    Series,
    Table,
    VerdictCard,
)
from nullarm.report.citations import Citations


def test_a_number_cannot_rest_on_a_cell_that_is_not_listed() -> None:
    card = VerdictCard(name="a", verdict="CONFIRMED", reason="", cells=("missing",))
    with pytest.raises(ValueError, match="verdict 'a' rests on cell 'missing'"):
        Document(title="t", question="q", verdicts=(card,))


def test_each_chart_and_table_of_the_sample_is_checked() -> None:
    document = sample()
    for section in document.sections:
        for block in section.blocks:
            cites = bool(list(replace(document, verdicts=(), sections=(Section("", (block,)),)).citations()))
            if cites:
                with pytest.raises(ValueError, match=f"{type(block).__name__} .* which is not among"):
                    Document(title="t", question="q", sections=(Section("", (block,)),))


def test_a_cell_is_listed_once() -> None:
    cell = CellRef("a", "", "ok")
    with pytest.raises(ValueError, match="'a' is listed twice"):
        Document(title="t", question="q", cells=(cell, cell))


def test_documents_do_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        sample().title = "other"  # type: ignore[misc]


def test_a_table_has_one_value_per_column_and_one_citation_per_row() -> None:
    with pytest.raises(ValueError, match="row 1 has 1 values for 2 columns"):
        Table("t", ("a", "b"), ((1, 2), (3,)))
    with pytest.raises(ValueError, match="cells for 1 rows, but 2 rows"):
        Table("t", ("a",), ((1,), (2,)), (("c",),))


def test_a_heatmap_has_the_shape_of_its_labels() -> None:
    with pytest.raises(ValueError, match=r"values must be \[1, 2\], rows have \[1\]"):
        HeatmapPanel("p", ("a", "b"), ("y",), [[1.0]])
    with pytest.raises(ValueError, match=r"hover must be \[1, 1\]"):
        HeatmapPanel("p", ("a",), ("y",), [[1.0]], [["x"], ["y"]])


@pytest.mark.parametrize(
    ("field", "value"), [("y", [1.0]), ("y_interval", [None]), ("hover", ["x"]), ("cells", ((), (), ()))]
)
def test_a_series_agrees_about_its_length(field: str, value: object) -> None:
    fields = {"y": [1.0, 2.0], field: value}
    with pytest.raises(ValueError, match=f"2 x but . {field}"):
        Series(name="s", x=[1.0, 2.0], **fields)  # type: ignore[arg-type]


def test_one_citation_stands_for_all_points() -> None:
    assert Series(name="s", x=[1, 2], y=[1, 2], cells=(("a",),)).cells_at(1) == ("a",)
    assert Series(name="s", x=[1, 2], y=[1, 2], cells=(("a",), ("b",))).cells_at(1) == ("b",)
    assert Series(name="s", x=[1, 2], y=[1, 2]).cells_at(1) == ()


def test_short_ids_grow_until_they_tell_cells_apart() -> None:
    citations = Citations.of([CellRef("0123456789a", "", "ok"), CellRef("0123456789b", "", "ok")])
    assert citations.short["0123456789a"] == "0123456789a"
    assert Citations.of([CellRef("0123456789a", "", "ok")]).short["0123456789a"] == "01234567"


def test_a_line_names_three_cells_and_counts_the_rest() -> None:
    citations = Citations.of([CellRef(f"{i}" * 10, "", "ok") for i in range(5)])
    assert citations.line(("0000000000",)) == "cell 00000000"
    assert citations.line(tuple(citations.row)) == "cells 00000000, 11111111, 22222222 and 2 more"
    assert citations.line(()) == ""


def test_no_cells_and_no_rows_are_a_document() -> None:
    empty = IntervalPlot("t", (), "x")
    document = Document(title="t", question="q", sections=(Section("s", (empty, Table("t", ("a",), ()))),))
    assert list(document.citations()) == []
    assert IntervalRow(label="a", estimate=None, interval=None).cells == ()
