"""Heatmaps: small multiples on one colour scale."""

from __future__ import annotations

import math

import plotly.graph_objects as go

from nullarm.report.charts import Heatmap, HeatmapPanel
from nullarm.report.citations import Citations
from nullarm.report.figure.parts import (
    CHARACTER_PX,
    Figure,
    Panel,
    Ramp,
    every_nth,
    label_axis,
    layout,
    panel,
    widest,
)
from nullarm.report.numbers import finite, show
from nullarm.report.palette import DIVERGING, SEQUENTIAL, colorscale
from nullarm.report.text import hover_text, plotly_text

PRINTED_CELLS = 400
"""Panels with more values than this show colour only."""
PRINTED_COLUMNS = 16
LABEL_PX = 14
"""Height of a line of labels."""
DISCRETE = 8
"""With no more distinct values than this, each has its own tick on the colour scale."""
Limits = tuple[float, float]


def draw_heatmap(chart: Heatmap, citations: Citations) -> Figure:
    """One panel per map, all on the limits of all maps together."""
    scaled = {_scaled(chart, value) for p in chart.panels for row in p.values for value in row}
    values = sorted(v for v in scaled if v is not None)
    limits = _limits(chart, values)
    panels = tuple(_draw_panel(chart, p, limits, citations) for p in chart.panels)
    return Figure(panels, max((_width_px(p) for p in chart.panels), default=300), ramp=_ramp(chart, values, limits))


def _draw_panel(chart: Heatmap, p: HeatmapPanel, limits: Limits, citations: Citations) -> Panel:
    rows, columns = len(p.y), len(p.x)
    trace = go.Heatmap(
        z=[[_scaled(chart, v) for v in row] for row in p.values],
        zmin=limits[0],
        zmax=limits[1],
        colorscale=colorscale(DIVERGING if chart.scale == "diverging" else SEQUENTIAL),
        showscale=False,
        xgap=2 if columns <= 40 else 0,
        ygap=2 if rows <= 40 else 0,
        hoverinfo="text",
        hovertext=[[_hover(chart, p, r, c, citations) for c in range(columns)] for r in range(rows)],
        meta={"cell": citations.first_row(p.cells)},
        text=_printed_text(p) if _printed(p) else None,
        texttemplate="%{text}" if _printed(p) else None,
        textfont={"size": 12, "weight": 600},
    )
    x = label_axis(chart.x_label, p.x, every_nth(columns), showline=False, ticks="")
    y = label_axis(chart.y_label, p.y, every_nth(rows), showline=False, ticks="", range=[rows - 0.5, -0.5])
    return panel(p.title, [trace], layout(round(rows * _row_px(p)) + 62 + _label_px(p), x, y), _least_px(p))


def _hover(chart: Heatmap, p: HeatmapPanel, row: int, column: int, citations: Citations) -> str:
    value = p.values[row][column]
    return hover_text(
        line
        for line in (
            f"{chart.y_label} {p.y[row]} · {chart.x_label} {p.x[column]}",
            f"{chart.value_label}: {show(value)}",
            p.hover[row][column] if len(p.hover) else "",
            citations.line(p.cells),
        )
        if line
    )


def _scaled(chart: Heatmap, value: float | None) -> float | None:
    value = finite(value)
    if value is None or chart.scale != "log":
        return value
    return math.log10(value) if value > 0 else None


def _limits(chart: Heatmap, values: list[float]) -> Limits:
    if not values:
        return 0.0, 1.0
    if chart.scale == "diverging":
        reach = max(abs(values[0]), abs(values[-1])) or 1.0
        return -reach, reach
    return (values[0], values[-1]) if values[-1] > values[0] else (values[0] - 0.5, values[0] + 0.5)


def _ramp(chart: Heatmap, values: list[float], limits: Limits) -> Ramp:
    low, high = limits
    marks = values if 1 < len(values) <= DISCRETE else [low, (low + high) / 2, high]
    spaced = [m for i, m in enumerate(marks) if i == 0 or (m - marks[i - 1]) / (high - low) > 0.07]
    ticks = tuple(((m - low) / (high - low) * 100, show(_raw(chart, m))) for m in spaced)
    name, stops = ("diverging", DIVERGING) if chart.scale == "diverging" else ("sequential", SEQUENTIAL)
    return Ramp(chart.value_label, tuple(f"--{name}-{i}" for i in range(len(stops))), ticks)


def _raw(chart: Heatmap, scaled: float) -> float:
    return float(f"{10**scaled:.6g}") if chart.scale == "log" else scaled


def _printed(p: HeatmapPanel) -> bool:
    return len(p.x) <= PRINTED_COLUMNS and len(p.x) * len(p.y) <= PRINTED_CELLS


def _printed_text(p: HeatmapPanel) -> list[list[str]]:
    return [["" if finite(v) is None else plotly_text(show(v)) for v in row] for row in p.values]


def _row_px(p: HeatmapPanel) -> float:
    """High enough for labels while there are few rows; many rows share the height of a screen."""
    return 24.0 if _printed(p) else _cell_px(len(p.y), most=24, room=400, limit=960)


def _column_px(p: HeatmapPanel) -> float:
    if not _printed(p):
        return _cell_px(len(p.x), most=26, room=450, limit=900)
    longest = max((len(text) for row in _printed_text(p) for text in row), default=1)
    return max(26, longest * CHARACTER_PX + 8)


def _cell_px(count: int, *, most: float, room: float, limit: float) -> float:
    """Side of a cell: what fits `room` while labels fit too, and never more than `limit` for all of them."""
    wanted = min(most, max(LABEL_PX, room / max(1, count)))
    return max(5.0, min(wanted, limit / max(1, count)))


def _label_px(p: HeatmapPanel) -> int:
    """Height of the column labels, which turn when they are wider than their columns."""
    width = widest(p.x)
    return 20 if width <= 1.5 * _column_px(p) * every_nth(len(p.x)) else width


def _width_px(p: HeatmapPanel) -> int:
    return round(min(980, max(240, 60 + widest(p.y) + _column_px(p) * len(p.x))))


def _least_px(p: HeatmapPanel) -> int:
    """Printed values need their columns whole; otherwise turned labels stand side by side."""
    labels = math.ceil(len(p.x) / every_nth(len(p.x)))
    return _width_px(p) if _printed(p) else 60 + widest(p.y) + LABEL_PX * labels
