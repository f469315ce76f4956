from __future__ import annotations

import base64
import csv
import io

import pytest
from hostile_report import HOSTILE, hostile
from sample_report import sample
from test_report_figure import charts

from nullarm.report import Heatmap, HeatmapPanel, Plot, Table
from nullarm.report.tables import chart_table, csv_link, csv_text
from nullarm.report.text import visible


def read(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text)))


def test_csv_keeps_full_precision_and_names_cells() -> None:
    table = Table("t", ("name", "value"), (("a", 0.1 + 0.2), (None, 3), (True, float("nan"))), (("c1", "c2"), (), ()))
    assert read(csv_text(table)) == [
        ["name", "value", "cells"],
        ["a", "0.30000000000000004", "c1 c2"],
        ["", "3", ""],
        ["true", "nan", ""],
    ]


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1"])
def test_no_text_is_a_formula(text: str) -> None:
    assert read(csv_text(Table("t", ("a",), ((text,),))))[1] == [f"'{text}"]


def test_negative_numbers_stay_numbers() -> None:
    assert read(csv_text(Table("t", ("a",), ((-0.5,),))))[1] == ["-0.5"]


def test_the_link_holds_the_csv() -> None:
    table = Table("t", ("σ",), ((HOSTILE[0],), ("\ud800",)))
    prefix, data = csv_link(table).split(",", 1)
    assert prefix == "data:text/csv;charset=utf-8;base64"
    assert base64.b64decode(data).decode() == csv_text(table)


def test_every_drawn_number_is_in_the_table() -> None:
    for chart in charts(sample()):
        table = chart_table(chart)
        assert all(table.cells)
        values = {v for row in table.rows for v in row}
        if isinstance(chart, Heatmap):
            assert values >= {v for p in chart.panels for row in p.values for v in row}
        if isinstance(chart, Plot):
            assert values >= {v for p in chart.panels for s in p.series for v in (*s.x, *s.y)}


def test_panels_of_unequal_columns_make_a_long_table() -> None:
    panels = (HeatmapPanel("p", ("a",), ("y",), [[1.0]]), HeatmapPanel("q", ("b",), ("y",), [[2.0]]))
    table = chart_table(Heatmap("t", "x", "y", "v", panels))
    assert table.rows == (("p", "y", "a", 1.0), ("q", "y", "b", 2.0))


def test_hostile_labels_arrive_in_the_csv_as_text() -> None:
    for chart in charts(hostile()):
        rows = read(csv_text(chart_table(chart)))
        assert visible(HOSTILE[0]) in {value for row in rows for value in row}
        assert all(len(row) == len(rows[0]) for row in rows)
