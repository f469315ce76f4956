"""The numbers behind a chart as a table, and any table as CSV."""

from __future__ import annotations

import base64
import csv
import io

from nullarm.report.blocks import Table, Value
from nullarm.report.charts import Chart, Heatmap, IntervalPlot, PairedPlot, Plot
from nullarm.report.figure.paired import control_mean, difference
from nullarm.report.numbers import as_number
from nullarm.report.text import visible

CELLS = "cells"
"""Heading of the column of cell ids."""
FORMULA_STARTS = ("=", "+", "-", "@", "\t")


def chart_table(chart: Chart) -> Table:
    """Every number that `chart` draws, with the cells it comes from."""
    if isinstance(chart, Heatmap):
        return _heatmap_table(chart)
    if isinstance(chart, IntervalPlot):
        return _interval_table(chart)
    if isinstance(chart, PairedPlot):
        return _paired_table(chart)
    return _plot_table(chart)


def csv_text(table: Table) -> str:
    """`table` as CSV in full precision, with a last column of cell ids when it has any.

    Text that a spreadsheet would run as a formula is preceded by an apostrophe.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([_csv_value(name) for name in (*table.columns, *([CELLS] if table.cells else []))])
    for index, row in enumerate(table.rows):
        cells = [" ".join(table.cells[index])] if table.cells else []
        writer.writerow([_csv_value(value) for value in (*row, *cells)])
    return out.getvalue()


def csv_link(table: Table) -> str:
    """`csv_text` as a link that needs neither a network nor a script."""
    data = csv_text(table).encode()
    return "data:text/csv;charset=utf-8;base64," + base64.b64encode(data).decode("ascii")


def _csv_value(value: Value) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    number = as_number(value)
    if number is not None:
        return repr(number)
    text = visible(str(value))
    return f"'{text}" if text[:1] in FORMULA_STARTS else text


def _heatmap_table(chart: Heatmap) -> Table:
    """Wide while all panels have the same columns, long otherwise."""
    columns = {p.x for p in chart.panels}
    if len(columns) == 1:
        wide = tuple((p.title, y, *row) for p in chart.panels for y, row in zip(p.y, p.values, strict=True))
        cells = tuple(p.cells for p in chart.panels for _ in p.y)
        return Table(chart.title, ("panel", chart.y_label, *columns.pop()), wide, cells)
    long = tuple(
        (p.title, y, x, value)
        for p in chart.panels
        for y, row in zip(p.y, p.values, strict=True)
        for x, value in zip(p.x, row, strict=True)
    )
    cells = tuple(p.cells for p in chart.panels for _ in range(len(p.x) * len(p.y)))
    return Table(chart.title, ("panel", chart.y_label, chart.x_label, chart.value_label), long, cells)


def _plot_table(chart: Plot) -> Table:
    points = [(p, s, i) for p in chart.panels for s in p.series for i in range(len(s.x))]
    with_interval = any(len(s.y_interval) for _, s, _ in points)
    rows = []
    for p, s, i in points:
        ends = (s.y_interval[i] if len(s.y_interval) else None) or (None, None)
        rows.append((p.title, s.name, s.x[i], s.y[i], *(ends if with_interval else ())))
    columns = ("panel", "series", chart.x.label, chart.y.label, *(("low", "high") if with_interval else ()))
    return Table(chart.title, columns, tuple(rows), tuple(s.cells_at(i) for _, s, i in points))


def _interval_table(chart: IntervalPlot) -> Table:
    rows = tuple((r.label, r.estimate, *(r.interval or (None, None)), r.verdict) for r in chart.rows)
    return Table(
        chart.title, ("contrast", "estimate", "low", "high", "verdict"), rows, tuple(r.cells for r in chart.rows)
    )


def _paired_table(chart: PairedPlot) -> Table:
    most = max((len(pair.controls) for pair in chart.pairs), default=0)
    rows = tuple(
        (
            pair.label,
            pair.treated.value,
            control_mean(pair),
            difference(pair),
            *(point.value for point in pair.controls),
            *(None for _ in range(most - len(pair.controls))),
        )
        for pair in chart.pairs
    )
    controls = (f"{chart.control} {i + 1}" for i in range(most))
    columns = (chart.x_label, chart.treatment, f"mean of {chart.control}", "difference", *controls)
    cells = tuple(tuple(c for point in (p.treated, *p.controls) for c in point.cells) for p in chart.pairs)
    return Table(chart.title, columns, rows, cells)
