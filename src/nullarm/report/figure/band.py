"""The band that shows an interval along a line."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import plotly.graph_objects as go

from nullarm.report.charts import Series
from nullarm.report.numbers import finite

OPACITY = 0.22


def band(series: Series, colour: str, index: int) -> Any | None:
    """A filled trace from the lower to the upper ends; None for a series without a band.

    Each unbroken run of intervals is one polygon: along the upper ends, and back along the lower ones.
    """
    if series.interval_style != "band" or not len(series.y_interval):
        return None
    ends = [_ends(x, interval) for x, interval in zip(series.x, series.y_interval, strict=True)]
    xs: list[float | None] = []
    ys: list[float | None] = []
    for known, run in groupby(ends, key=lambda end: end is not None):
        points = [end for end in run if end is not None]
        if known:
            xs += [*([None] if xs else []), *(x for x, _, _ in points), *(x for x, _, _ in reversed(points))]
            ys += [*([None] if ys else []), *(high for _, _, high in points), *(low for _, low, _ in reversed(points))]
    fill = {"fill": "toself", "fillcolor": colour, "opacity": OPACITY, "line": {"width": 0, "color": colour}}
    return go.Scatter(x=xs, y=ys, mode="lines", hoverinfo="skip", meta={"series": index}, **fill)


def _ends(x: float | None, interval: tuple[float, float] | None) -> tuple[float, float, float] | None:
    low, high = (finite(end) for end in interval or (None, None))
    place = finite(x)
    return None if place is None or low is None or high is None else (place, low, high)
