"""Lines, scatter and steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import plotly.graph_objects as go

from nullarm.report.charts import Axis, Guide, Plot, PlotPanel, Series
from nullarm.report.citations import Citations
from nullarm.report.figure.band import band
from nullarm.report.figure.parts import Figure, LegendEntry, Panel, axis, layout, panel, span
from nullarm.report.numbers import finite, show
from nullarm.report.palette import ORDERED, PAPER, SERIES, SOFT
from nullarm.report.text import hover_text, plotly_text, title_text

DASHES = ("solid", "dash", "dot", "dashdot")
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "x", "star", "triangle-down")
MODES = {"line": "lines", "points": "markers", "line+points": "lines+markers", "step": "lines"}
HEIGHT_PX, SMALL_HEIGHT_PX = 380, 270
WIDTH_PX, SMALL_WIDTH_PX = 720, 300
GUIDE_WIDTH = 36


def draw_plot(chart: Plot, citations: Citations) -> Figure:
    """Panels on equal axes, with one legend for all of them."""
    names = dict.fromkeys(series.name for p in chart.panels for series in p.series)
    look = {name: _look(chart, index, len(names)) for index, name in enumerate(names)}
    single = len(chart.panels) == 1
    height = HEIGHT_PX if single else SMALL_HEIGHT_PX
    panels = tuple(_draw_panel(chart, p, look, _frame(chart, p, height), citations) for p in chart.panels)
    legend = tuple(
        LegendEntry(name, variable, index, _mark(chart, name, dash))
        for index, (name, (variable, _, dash, _)) in enumerate(look.items())
    )
    return Figure(panels, WIDTH_PX if single else SMALL_WIDTH_PX, legend if len(legend) > 1 else ())


Look = tuple[str, str, str, str]
"""CSS variable and light colour, dash, symbol."""


def _look(chart: Plot, index: int, count: int) -> Look:
    if chart.ordered:
        stop = round(index / max(1, count - 1) * (len(ORDERED) - 1))
        return f"--ordered-{stop}", ORDERED[stop][0], "solid", "circle"
    colour, turn = index % len(SERIES), index // len(SERIES)
    return f"--series-{colour}", SERIES[colour][0], DASHES[turn % len(DASHES)], SYMBOLS[index % len(SYMBOLS)]


def _mark(chart: Plot, name: str, dash: str) -> str:
    points = all(s.style == "points" for p in chart.panels for s in p.series if s.name == name)
    return "point" if points else dash


def _frame(chart: Plot, p: PlotPanel, height_px: int) -> dict[str, Any]:
    """The layout of a panel: equal x axes, and equal y axes but for a panel that has its own."""
    everything = [s for other in chart.panels for s in other.series]
    sharing = [s for other in chart.panels if other.y is None for s in other.series]
    guides = chart.guides if p.y is None else tuple(guide for guide in chart.guides if guide.axis == "x")
    x = _axis(chart.x, _values(chart.x, "x", everything, chart.guides))
    y = _axis(p.y or chart.y, _values(p.y or chart.y, "y", p.series if p.y else sharing, guides))
    lines = [_guide_line(guide) for guide in guides]
    labels = [_guide_label(chart, guide) for guide in guides if guide.label]
    return layout(height_px, x, y, shapes=lines, annotations=labels)


def _draw_panel(chart: Plot, p: PlotPanel, look: dict[str, Look], frame: dict[str, Any], citations: Citations) -> Panel:
    order = list(look)
    bands = [b for s in p.series if (b := band(s, look[s.name][1], order.index(s.name)))]
    lines = [_trace(chart.x, p.y or chart.y, s, look[s.name], order.index(s.name), citations) for s in p.series]
    return panel(p.title, [*bands, *lines], frame)


def _trace(x: Axis, y: Axis, series: Series, look: Look, index: int, citations: Citations) -> Any:
    _, colour, dash, symbol = look
    n = len(series.x)
    return go.Scatter(
        x=[finite(v) for v in series.x],
        y=[finite(v) for v in series.y],
        mode=MODES[series.style],
        line={"color": colour, "width": 2, "dash": dash, "shape": "hv" if series.style == "step" else "linear"},
        marker={"color": colour, "size": 8, "symbol": symbol},
        error_y=_error_bars(series, colour),
        hoverinfo="text",
        hovertext=[hover_text(_hover_lines(x, y, series, i, citations)) for i in range(n)],
        customdata=[citations.first_row(series.cells_at(i)) for i in range(n)],
        meta={"series": index},
    )


def _hover_lines(x: Axis, y: Axis, series: Series, index: int, citations: Citations) -> list[str]:
    interval = series.y_interval[index] if len(series.y_interval) else None
    lines = (
        series.name,
        f"{x.label}: {show(series.x[index])}",
        f"{y.label}: {show(series.y[index])}",
        f"interval {show(interval[0])} to {show(interval[1])}" if interval else "",
        series.hover[index] if len(series.hover) else "",
        citations.line(series.cells_at(index)),
    )
    return [line for line in lines if line]


def _error_bars(series: Series, colour: str) -> dict[str, Any] | None:
    if not len(series.y_interval) or series.interval_style == "band":
        return None
    ends = [interval or (None, None) for interval in series.y_interval]
    down = [_distance(low, y) for (low, _), y in zip(ends, series.y, strict=True)]
    up = [_distance(y, high) for (_, high), y in zip(ends, series.y, strict=True)]
    return {"type": "data", "array": up, "arrayminus": down, "color": colour, "thickness": 1.5, "width": 4}


def _distance(low: float | None, high: float | None) -> float:
    low, high = finite(low), finite(high)
    return 0.0 if low is None or high is None else high - low


def _values(of: Axis, name: Literal["x", "y"], series: Sequence[Series], guides: Sequence[Guide]) -> list[float]:
    """Every finite value along one axis, intervals and guides included."""
    values = [v for s in series for v in getattr(s, name)] + [g.value for g in guides if g.axis == name]
    if name == "y":
        values += [end for s in series for interval in s.y_interval if interval for end in interval]
    return [v for v in map(finite, values) if v is not None and (v > 0 or not of.log)]


def _axis(of: Axis, values: list[float]) -> dict[str, Any]:
    """An axis that holds all panels; a logarithmic one has its ticks at 1, 2, 5 or at powers."""
    if not of.log:
        ticks: dict[str, Any] = {"tick0": 0, "dtick": _whole_step(values)} if of.whole else {}
        return axis(of.label, range=list(span(values)), **ticks)
    places = log_ticks(values)
    labels = [plotly_text(show(place)) for place in places]
    range_ = list(span(math.log10(v) for v in values))
    return axis(of.label, log=True, tickmode="array", tickvals=places, ticktext=labels, range=range_)


def _whole_step(values: list[float]) -> int:
    """The least of 1, 2, 5, 10, 20, … that makes no more than nine steps."""
    width = max(values) - min(values) if values else 0.0
    power: int = 10 ** max(0, math.floor(math.log10(max(width, 9) / 9)))
    return next(step for step in (power, 2 * power, 5 * power, 10 * power) if width <= 9 * step)


def log_ticks(values: list[float]) -> list[float]:
    """Ticks of a logarithmic axis: powers of two for such values, else 1, 2, 5 up to two decades, else decades."""
    if values and all(math.log2(v).is_integer() for v in values):
        return sorted(set(values))
    low, high = (min(values), max(values)) if values else (1.0, 1.0)
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    step = 1 if last - first <= 8 else math.ceil((last - first) / 8)
    wide = math.log10(high / low) > 2
    exponents = range(first, last + 1, step)
    return [float(f"{m}e{e}") for e in exponents for m in ((1,) if wide else (1, 2, 5))]


def _guide_line(guide: Guide) -> dict[str, Any]:
    across = {"x": ("x", "y"), "y": ("y", "x")}[guide.axis]
    along, other = across
    return {
        "type": "line",
        f"{along}ref": along,
        f"{along}0": guide.value,
        f"{along}1": guide.value,
        f"{other}ref": "paper",
        f"{other}0": 0,
        f"{other}1": 1,
        "line": {"color": SOFT, "width": 1.5, "dash": "dash"},
    }


def _guide_label(chart: Plot, guide: Guide) -> dict[str, Any]:
    # On a logarithmic axis Plotly wants shapes in values and annotations in exponents.
    log = chart.x.log if guide.axis == "x" else chart.y.log
    place = math.log10(guide.value) if log else guide.value
    on_x = guide.axis == "x"
    return {
        "text": title_text(guide.label, GUIDE_WIDTH),
        "x": place if on_x else 1,
        "y": 1 if on_x else place,
        "xref": "x" if on_x else "paper",
        "yref": "paper" if on_x else "y",
        "xanchor": "left" if on_x else "right",
        "yanchor": "top" if on_x else "bottom",
        "showarrow": False,
        "font": {"color": SOFT, "size": 11},
        "bgcolor": PAPER,
    }
