"""The budget curve as a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from nullarm.protocols.kv_communication.budget.points import Point, frontier

LOOKS = {
    "cache": ("o", "#2563eb"),
    "control": ("x", "#6b7280"),
    "text": ("s", "#d97706"),
}
"""Marker and colour of each kind of arm that sends something."""


def draw(dataset: str, points: Sequence[Point]) -> bytes:
    """PNG: bytes (logarithmic) against accuracy, intervals, the frontier, text, and the receiver alone as a line."""
    from matplotlib.figure import Figure  # without pyplot nothing is shown, and no back end is chosen for others
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    figure = Figure(figsize=(7.5, 4.8), dpi=150, layout="constrained")
    axes: Any = figure.add_subplot()
    for name, (marker, colour) in LOOKS.items():
        _scatter(axes, name, [p for p in points if p.kind == name], marker, colour)
    best = [p for p in frontier(points) if p.result.wire_bytes > 0]
    axes.step(*_places(best), where="post", color=LOOKS["cache"][1], linewidth=1, label="frontier", zorder=1)
    for point in best:
        place = (point.result.wire_bytes, point.result.accuracy)
        axes.annotate(point.result.arm, place, xytext=(4, 5), textcoords="offset points", fontsize=7)
    for point in points:
        if point.kind == "receiver":
            axes.axhline(point.result.accuracy, color="#111827", linestyle="--", linewidth=1, label="receiver only")
    if any(p.result.wire_bytes > 0 for p in points):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(EngFormatter(unit="B"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set(xlabel="bytes an item (measured)", ylabel="accuracy (95 % interval)", title=dataset)
    axes.grid(alpha=0.25)
    by_label = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    axes.legend(by_label.values(), by_label.keys(), fontsize=8)
    png = io.BytesIO()
    figure.savefig(png, format="png", metadata={"Software": None})
    return png.getvalue()


def _scatter(axes: Any, name: str, points: Sequence[Point], marker: str, colour: str) -> None:
    shown = [p for p in points if p.result.wire_bytes > 0]
    if not shown:
        return
    x, y = _places(shown)
    ends = [p.result.ends or (p.result.accuracy,) * 2 for p in shown]
    # An interval of Wilson's may end a rounding error inside its own estimate.
    down = [max(0.0, value - low) for value, (low, _) in zip(y, ends, strict=True)]
    up = [max(0.0, high - value) for value, (_, high) in zip(y, ends, strict=True)]
    axes.errorbar(x, y, yerr=(down, up), fmt=marker, color=colour, markersize=5, linewidth=1, capsize=2, label=name)


def _places(points: Sequence[Point]) -> tuple[list[float], list[float]]:
    return [p.result.wire_bytes for p in points], [p.result.accuracy for p in points]
