"""Forest plot: estimates with intervals against zero and the margin."""

from __future__ import annotations

import math
from typing import Any

import plotly.graph_objects as go

from nullarm.report.charts import IntervalPlot, IntervalRow
from nullarm.report.citations import Citations
from nullarm.report.figure.parts import Figure, axis, layout, panel, span
from nullarm.report.numbers import effect_decimals, finite, show_effect, show_interval, show_percent
from nullarm.report.palette import BAND, GRID, INK, SOFT, tone
from nullarm.report.text import hover_text, title_text
from nullarm.report.verdicts import style, words

ROW_PX = 58
LABEL_WIDTH = 48
WIDTH_PX = 720
DROP = 0.2
"""How far the interval stands below the middle of its row."""


def draw_intervals(chart: IntervalPlot, citations: Citations) -> Figure:
    """One row per estimate, the first on top."""
    low, high = _range(chart)
    traces = [t for i, row in enumerate(chart.rows) for t in _row_traces(chart, row, i, (low, high), citations)]
    count = len(chart.rows)
    y = axis(
        "", range=[count - 0.5, -0.5], showline=False, ticks="", showticklabels=False, showgrid=False, automargin=False
    )
    x = axis(chart.x_label, range=[low, high])
    labels = [_label(row, place) for place, row in enumerate(chart.rows)]
    frame = layout(count * ROW_PX + 60, x, y, shapes=_background(chart), annotations=labels)
    return Figure((panel("", traces, frame),), WIDTH_PX)


def _label(row: IntervalRow, place: int) -> dict[str, Any]:
    """The label stands above its interval, so that a narrow page loses no width to it."""
    text = f"{style(row.verdict).sign} {row.label}" if row.verdict else row.label
    return {
        "text": title_text(text, LABEL_WIDTH),
        "x": 0,
        "xref": "paper",
        "xanchor": "left",
        "y": place - 0.02,
        "yanchor": "bottom",
        "align": "left",
        "showarrow": False,
        "font": {"color": INK, "size": 12},
    }


def _row_traces(
    chart: IntervalPlot, row: IntervalRow, place: int, limits: tuple[float, float], citations: Citations
) -> list[Any]:
    colour = tone(style(row.verdict).tone) if row.verdict else INK
    common = {
        "hoverinfo": "text",
        "hovertext": hover_text(_hover_lines(chart, row, citations)),
        "meta": {"cell": citations.first_row(row.cells)},
    }
    traces = []
    if row.interval is not None:
        ends = [max(limits[0], row.interval[0]), min(limits[1], row.interval[1])]
        line = {"color": colour, "width": 4}
        traces.append(go.Scatter(x=ends, y=[place + DROP, place + DROP], mode="lines", line=line, **common))
    if finite(row.estimate) is not None:
        marker = {"color": colour, "size": 13, "symbol": "diamond"}
        traces.append(go.Scatter(x=[row.estimate], y=[place + DROP], mode="markers", marker=marker, **common))
    return traces


def _hover_lines(chart: IntervalPlot, row: IntervalRow, citations: Citations) -> list[str]:
    decimals = effect_decimals(row.interval, row.estimate)
    lines = (
        row.label,
        words(row.verdict),
        f"estimate {show_effect(row.estimate, decimals)}",
        f"{show_percent(row.level or chart.level)} interval {show_interval(row.interval, decimals)}",
        citations.line(row.cells),
    )
    return [line for line in lines if line]


def _range(chart: IntervalPlot) -> tuple[float, float]:
    margin = chart.margin or 0.0
    ends = [end for row in chart.rows if row.interval for end in row.interval if math.isfinite(end)]
    return span([0.0, margin, -margin, *ends, *(row.estimate for row in chart.rows)])


def _background(chart: IntervalPlot) -> list[dict[str, Any]]:
    whole = {"yref": "paper", "y0": 0, "y1": 1, "layer": "below"}
    zero = {**whole, "type": "line", "x0": 0, "x1": 0, "line": {"color": SOFT, "width": 2}}
    lines = [_rule(place + 0.5) for place in range(len(chart.rows) - 1)]
    if not chart.margin:
        return [zero, *lines]
    band = {**whole, "type": "rect", "x0": -chart.margin, "x1": chart.margin, "fillcolor": BAND, "line": {"width": 0}}
    return [band, zero, *lines]


def _rule(y: float) -> dict[str, Any]:
    """The line between two rows."""
    return {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": y, "y1": y, "line": {"color": GRID, "width": 1}}
