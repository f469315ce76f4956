"""Paired plot: in each pair, where the treated value falls among its controls."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go

from nullarm.report.charts import Pair, PairedPlot, Point
from nullarm.report.citations import Citations
from nullarm.report.figure.parts import Figure, LegendEntry, axis, label_axis, layout, panel
from nullarm.report.numbers import finite, show, show_effect
from nullarm.report.palette import SERIES
from nullarm.report.text import hover_text

HEIGHT_PX = 380
WIDTH_PX = 480
TREATED, CONTROL = SERIES[0][0], SERIES[1][0]
BAR = 0.16
"""Half the width of the bar at the mean of the controls, in units of the distance between pairs."""


def draw_paired(chart: PairedPlot, citations: Citations) -> Figure:
    """Controls as rings, their mean as a bar, the treated value as a diamond joined to that bar."""
    traces = [
        *(_difference(pair, place) for place, pair in enumerate(chart.pairs)),
        _means(chart),
        _points(chart, citations, treated=False),
        _points(chart, citations, treated=True),
    ]
    x = label_axis(chart.x_label, [pair.label for pair in chart.pairs])
    frame = layout(HEIGHT_PX, x, axis(chart.y.label, log=chart.y.log))
    legend = (
        LegendEntry(chart.treatment, "--series-0", 0, "diamond"),
        LegendEntry(chart.control, "--series-1", 1, "ring"),
        LegendEntry(f"mean of {chart.control}", "--series-1", 2, "solid"),
    )
    return Figure((panel("", traces, frame),), WIDTH_PX, legend)


def control_mean(pair: Pair) -> float | None:
    """Mean of the controls that were measured, None without any."""
    known = [v for point in pair.controls if (v := finite(point.value)) is not None]
    return sum(known) / len(known) if known else None


def difference(pair: Pair) -> float | None:
    """Treated minus the mean of its controls, None when one of them is missing."""
    treated, mean = finite(pair.treated.value), control_mean(pair)
    return None if treated is None or mean is None else treated - mean


def _points(chart: PairedPlot, citations: Citations, *, treated: bool) -> Any:
    marks = [
        (place, offset, point)
        for place, pair in enumerate(chart.pairs)
        for offset, point in _spread((pair.treated,) if treated else pair.controls)
    ]
    marker = {"color": TREATED, "size": 14, "symbol": "diamond"}
    if not treated:
        marker = {"color": CONTROL, "size": 9, "symbol": "circle-open", "line": {"color": CONTROL, "width": 2}}
    return go.Scatter(
        x=[place + offset for place, offset, _ in marks],
        y=[finite(point.value) for _, _, point in marks],
        mode="markers",
        marker=marker,
        hoverinfo="text",
        hovertext=[_hover(chart, place, point, citations, treated) for place, _, point in marks],
        customdata=[citations.first_row(point.cells) for _, _, point in marks],
        meta={"series": 0 if treated else 1},
    )


def _spread(points: tuple[Point, ...]) -> list[tuple[float, Point]]:
    """Points side by side over the width of the bar, so that equal values do not hide each other."""
    step = min(0.07, 2 * BAR / len(points)) if points else 0.0
    return [((index - (len(points) - 1) / 2) * step, point) for index, point in enumerate(points)]


def _hover(chart: PairedPlot, place: int, point: Point, citations: Citations, treated: bool) -> str:
    pair = chart.pairs[place]
    gap = difference(pair) if treated else None
    lines = (
        f"{chart.treatment if treated else chart.control} {point.label}".rstrip(),
        f"{chart.x_label} {pair.label}",
        f"{chart.y.label}: {show(point.value)}",
        f"{show_effect(gap, 4)} against the mean of {chart.control}" if gap is not None else "",
        citations.line(point.cells),
    )
    return hover_text(line for line in lines if line)


def _means(chart: PairedPlot) -> Any:
    x: list[float | None] = []
    y: list[float | None] = []
    for place, pair in enumerate(chart.pairs):
        mean = control_mean(pair)
        x += [place - BAR, place + BAR, None]
        y += [mean, mean, None]
    return go.Scatter(x=x, y=y, mode="lines", line={"color": CONTROL, "width": 3}, hoverinfo="skip", meta={"series": 2})


def _difference(pair: Pair, place: int) -> Any:
    ends = [control_mean(pair), finite(pair.treated.value)]
    return go.Scatter(
        x=[place, place],
        y=ends,
        mode="lines",
        line={"color": TREATED, "width": 2, "dash": "dot"},
        hoverinfo="skip",
        meta={"series": 0},
    )
