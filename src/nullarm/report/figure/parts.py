"""What all figures share: axes, layout, labels, legend, and the way into the page."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from nullarm.report.numbers import finite
from nullarm.report.palette import GRID, INK, LINE, PAPER, SOFT
from nullarm.report.text import TICK_WIDTH, tick_text, title_text

FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif'
CHARACTER_PX = 7
"""Width of a character of a tick label."""
TITLE_WIDTH = 40
MOST_TICKS = 40


@dataclass(frozen=True, slots=True)
class Panel:
    """One Plotly figure."""

    title: str
    spec: str
    """JSON, safe inside a script element."""
    height_px: int
    least_px: int = 0
    """Width below which labels would overlap; on a narrower page the panel scrolls sideways."""


@dataclass(frozen=True, slots=True)
class LegendEntry:
    """A name with the variable of its colour; `index` is what the traces carry in `meta.series`."""

    name: str
    variable: str
    index: int
    mark: str = "line"
    """`line`, `dash`, `dot`, `dashdot` or `point`."""


@dataclass(frozen=True, slots=True)
class Ramp:
    """The colour scale of a heatmap: CSS variables from low to high, and ticks as (per cent, label)."""

    label: str
    variables: tuple[str, ...]
    ticks: tuple[tuple[float, str], ...]


@dataclass(frozen=True, slots=True)
class Figure:
    """Panels that flow side by side, none narrower than `panel_px` where the page is wide enough."""

    panels: tuple[Panel, ...]
    panel_px: int
    legend: tuple[LegendEntry, ...] = ()
    ramp: Ramp | None = None


def panel(title: str, traces: Iterable[Any], layout: dict[str, Any], least_px: int = 0) -> Panel:
    """A panel from Plotly traces and a layout, checked by Plotly's own schema."""
    import plotly.graph_objects as go

    spec = go.Figure(data=list(traces), layout=go.Layout(**layout)).to_plotly_json()
    spec["layout"].pop("template", None)
    return Panel(title, script_json(spec), layout["height"], least_px)


def script_json(data: Any) -> str:
    r"""JSON in ASCII without `<`, `>` and `&`, so that nothing in it can end or open an element.

    Raises:
        ValueError: A number is not finite.
    """
    text = json.dumps(data, allow_nan=False, sort_keys=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def layout(height_px: int, x: dict[str, Any], y: dict[str, Any], **more: Any) -> dict[str, Any]:
    """The layout of every panel."""
    return {
        "height": height_px,
        "margin": {"l": 8, "r": 12, "t": 10, "b": 8},
        "paper_bgcolor": PAPER,
        "plot_bgcolor": PAPER,
        "font": {"family": FONT, "size": 12, "color": INK},
        "hoverlabel": {
            "align": "left",
            "bgcolor": PAPER,
            "bordercolor": LINE,
            "font": {"family": FONT, "size": 12, "color": INK},
        },
        "hovermode": "closest",
        "showlegend": False,
        "xaxis": x,
        "yaxis": y,
        **more,
    }


def axis(label: str, *, log: bool = False, **more: Any) -> dict[str, Any]:
    """An axis of numbers."""
    return {
        "type": "log" if log else "linear",
        "title": {"text": title_text(label, TITLE_WIDTH), "standoff": 10, "font": {"color": SOFT}},
        "automargin": True,
        "gridcolor": GRID,
        "linecolor": LINE,
        "tickcolor": LINE,
        "ticks": "outside",
        "ticklen": 4,
        "showline": True,
        "zeroline": False,
        **more,
    }


def label_axis(label: str, names: Sequence[str], every: int = 1, **more: Any) -> dict[str, Any]:
    """An axis of names at 0, 1, 2, …; `every` thins the labels out, never the data."""
    places = range(0, len(names), every)
    own = {
        "tickmode": "array",
        "tickvals": list(places),
        "ticktext": [tick_text(names[i]) for i in places],
        "showgrid": False,
        "range": [-0.5, len(names) - 0.5],
    }
    return axis(label, **{**own, **more})


def every_nth(count: int, most: int = MOST_TICKS) -> int:
    """Step between labels so that no more than `most` are shown."""
    return max(1, math.ceil(count / most))


def widest(labels: Iterable[str]) -> int:
    """Width in px of the longest tick label."""
    return CHARACTER_PX * max((min(len(label), TICK_WIDTH) for label in labels), default=0)


def span(values: Iterable[float | None], pad: float = 0.06) -> tuple[float, float]:
    """Least and greatest finite value with some room on both sides; (−1, 1) without any."""
    known = [v for v in map(finite, values) if v is not None]
    if not known:
        return -1.0, 1.0
    room = (max(known) - min(known)) * pad or abs(known[0]) * pad or 1.0
    return min(known) - room, max(known) + room
