"""Where the change is largest, and which layers made it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from nullarm.protocols.residual.report.entries import Entry
from nullarm.protocols.residual.report.hotspots import Hotspot, largest, shares
from nullarm.protocols.residual.report.layers import LAYER
from nullarm.protocols.residual.report.maps import prompt_line, token_label
from nullarm.report import Axis, Block, Plot, PlotPanel, Series, Table, Value

METRICS = {
    "direct_diff": "Largest changes that a layer made by itself",
    "js": "Largest divergences",
}
TOP = 5
LEADING = 3
"""Layers that are named for each entry."""


def hottest(entries: Sequence[Entry]) -> Iterator[Block]:
    """Which layers made the change, then the single places."""
    found = {entry: shares(entry.captured) for entry in entries}
    if any(found.values()):
        yield _plot(found)
        yield _leading(found)
    for metric, title in METRICS.items():
        yield from _places(entries, metric, title)


def _plot(changed: dict[Entry, dict[int, float]]) -> Plot:
    """Every entry, also one without a line, so that each has the colour it has in the other charts."""
    series = tuple(
        Series(name=e.name, x=list(s), y=list(s.values()), cells=(e.cells,), style="line+points")
        for e, s in changed.items()
    )
    return Plot(
        title="Where the change was made",
        x=LAYER,
        y=Axis("share of the direct change"),
        panels=(PlotPanel(series[0].name if len(series) == 1 else "", series),),
        caption="Each layer's share of the summed squared direct change, over all prompts and positions: what a block "
        "changes by itself, with nothing inherited from earlier layers. A few positions with very large residuals, "
        "often the first one, can carry most of it. An entry in which nothing changed has no line.",
    )


def _leading(changed: dict[Entry, dict[int, float]]) -> Table:
    rows: list[tuple[Value, ...]] = []
    cells = []
    for entry, by_layer in changed.items():
        for layer in sorted(by_layer, key=lambda layer: -by_layer[layer])[:LEADING]:
            rows.append((entry.name, layer, by_layer[layer]))
            cells.append(entry.cells)
    return Table("Layers that changed most by themselves", ("entry", "layer", "share"), tuple(rows), tuple(cells))


def _places(entries: Sequence[Entry], metric: str, title: str) -> Iterator[Table]:
    found = [(entry, spot) for entry in entries for spot in largest(entry.captured, metric, TOP)]
    if found:
        yield Table(
            title=title,
            columns=("entry", metric, "layer", "position", "token", "prompt", "variant", "text"),
            rows=tuple(_row(entry, spot) for entry, spot in found),
            cells=tuple(entry.cells for entry, _ in found),
            caption=f"The {TOP} largest values of {metric} of each entry, over all prompts and variants; 0 is none.",
        )


def _row(entry: Entry, spot: Hotspot) -> tuple[Value, ...]:
    text = prompt_line(entry.captured.tokens(spot.prompt, spot.variant))
    return (
        entry.name, spot.value, spot.layer, spot.position, token_label(spot.token), spot.prompt, spot.variant, text,
    )  # fmt: skip
