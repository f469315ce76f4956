"""The budget curves: bytes against accuracy, one figure for each data set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from nullarm.protocols.kv_communication.budget.points import Point, frontier
from nullarm.report import Axis, Block, Guide, Plot, PlotPanel, Series, Table
from nullarm.report.numbers import show, show_percent

CAPTION = (
    "Bytes an item as measured on the wire, with 95 % intervals of the accuracy. The line is the Pareto frontier: "
    "caches that no other one beats in both. Straight line: the receiver alone, which costs nothing. Hovering shows "
    "how often an arm is on the frontier when the items are drawn again."
)


def curves(points: Sequence[Point]) -> Iterator[Block]:
    """A figure and the frontier as a table, for each data set."""
    for dataset in dict.fromkeys(point.result.dataset for point in points):
        here = [point for point in points if point.result.dataset == dataset]
        if any(point.result.wire_bytes > 0 for point in here):
            yield _figure(dataset, here)
            yield _table(dataset, frontier(here))


def _figure(dataset: str, points: Sequence[Point]) -> Plot:
    sent = [point for point in points if point.result.wire_bytes > 0]
    groups: dict[str, list[Point]] = {}
    for point in sent:
        groups.setdefault(_group(point), []).append(point)
    line = _series("frontier", frontier(sent), "step")
    alone = [p.result.accuracy for p in points if p.kind == "receiver"]
    return Plot(
        title=f"{dataset}: bytes against accuracy",
        x=Axis("bytes an item", log=True),
        y=Axis("accuracy"),
        panels=(PlotPanel(dataset, (line, *(_series(name, group, "points") for name, group in groups.items()))),),
        guides=tuple(Guide("y", accuracy) for accuracy in alone[:1]),
        caption=CAPTION,
    )


def _group(point: Point) -> str:
    """Points of one colour: a codec, the controls, text."""
    if point.kind == "cache":
        return str(point.result.channel["codec"])
    return "controls" if point.kind == "control" else "text"


def _series(name: str, points: Sequence[Point], style: str) -> Series:
    results = [point.result for point in points]
    step = style == "step"
    return Series(
        name=name,
        x=[r.wire_bytes for r in results],
        y=[r.accuracy for r in results],
        y_interval=() if step else [r.ends for r in results],
        hover=[_hover(point) for point in points],
        cells=tuple(r.cells for r in results),
        style="step" if step else "points",
    )


def _hover(point: Point) -> str:
    r, share = point.result, point.membership
    lines = [f"{r.arm}, {r.n} items", f"{show(round(r.wire_bytes, 1))} bytes, {show(r.bytes_per_token)} an input token"]
    return "\n".join([*lines, *([] if share is None else [f"on the frontier in {show_percent(share)} of resamples"])])


def _table(dataset: str, best: Sequence[Point]) -> Table:
    return Table(
        title=f"Frontier: {dataset}",
        columns=("arm", "bytes an item", "accuracy", "share of resamples on the frontier"),
        rows=tuple((p.result.arm, p.result.wire_bytes, p.result.accuracy, p.membership) for p in best),
        cells=tuple(p.result.cells for p in best),
    )
