"""The sweep: one group of matrices at a time, at several ranks, by several methods."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from nullarm.protocols.low_rank.report.words import method_words
from nullarm.protocols.low_rank.sessions import finished_cells
from nullarm.protocols.low_rank.tables import ERRORS, SWEEP
from nullarm.report import Block, Heatmap, HeatmapPanel, Table
from nullarm.report.numbers import show_percent
from nullarm.store.study_store import StudyStore

ABOVE = " ▲"
"""Marks a rank above break-even."""

MEANS = {"keep": "share", "weight_error": "weight error", "output_error": "output error", "delta_nll": "ΔNLL"}
"""Columns that are averaged over layers, with their headings."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class _Swept:
    name: str
    cell: str
    rows: Sequence[Row]

    def by_slots(self) -> dict[str, list[Row]]:
        """Rows of each group of matrices."""
        found: dict[str, list[Row]] = defaultdict(list)
        for row in self.rows:
            found[row["slots"]].append(row)
        return found


def sweep(store: StudyStore) -> Iterator[Block]:
    """Means over layers, then for each method a map of output errors and one of ΔNLL."""
    found = [
        _Swept(method_words(cell.parameters["method"]), cell.id, done.table(ERRORS).to_pylist())
        for cell, done in finished_cells(store, SWEEP)
    ]
    if found:
        yield _means(found)
    for swept in found:
        yield _map(swept, f"{swept.name}: output error", "output_error", "relative error of the output", "linear")
        yield _map(swept, f"{swept.name}: ΔNLL", "delta_nll", "ΔNLL, nats a token", "diverging")


def _means(found: Sequence[_Swept]) -> Table:
    groups = [
        (slots, swept, rank, [row for row in mine if row["rank"] == rank])
        for slots in dict.fromkeys(row["slots"] for swept in found for row in swept.rows)
        for swept in found
        if (mine := swept.by_slots().get(slots, []))
        for rank in sorted({row["rank"] for row in mine}, reverse=True)
    ]
    return Table(
        title="Sweep, mean over layers",
        columns=("slots", "method", "rank", *MEANS.values(), "above break-even"),
        rows=tuple(
            (slots, swept.name, rank, *(_mean(rows, column) for column in MEANS), _above(rows))
            for slots, swept, rank, rows in groups
        ),
        cells=tuple((swept.cell,) for _, swept, *_ in groups),
        caption="One layer's matrices at a time, the rest of the model as loaded. Share: numbers of the factors over "
        "those of the matrices. Output error on calibration inputs, ΔNLL on the first windows of the evaluation text.",
    )


def _map(swept: _Swept, title: str, column: str, label: str, scale: Literal["linear", "diverging"]) -> Heatmap:
    panels = tuple(_panel(slots, rows, column, swept.cell) for slots, rows in swept.by_slots().items())
    caption = f"{ABOVE.strip()}: above break-even, the factors are larger than the matrix."
    return Heatmap(title, "rank, share", "layer", label, panels, scale, caption if _above(swept.rows) else "")


def _panel(slots: str, rows: Sequence[Row], column: str, cell: str) -> HeatmapPanel:
    """Layers from the top down, the last one first."""
    known = {(row["layer"], row["rank"]): row for row in rows}
    layers = sorted({layer for layer, _ in known}, reverse=True)
    ranks = sorted({rank for _, rank in known})
    return HeatmapPanel(
        title=slots,
        x=tuple(_column(rank, [row for row in rows if row["rank"] == rank]) for rank in ranks),
        y=tuple(str(layer) for layer in layers),
        values=[[known[layer, rank][column] if (layer, rank) in known else None for rank in ranks] for layer in layers],
        cells=(cell,),
    )


def _column(rank: int, rows: Sequence[Row]) -> str:
    return f"{rank}, {show_percent(round(rows[0]['keep'], 2))}{ABOVE if _above(rows) else ''}"


def _above(rows: Sequence[Row]) -> bool:
    return any(row["above_break_even"] for row in rows)


def _mean(rows: Sequence[Row], name: str) -> float:
    return float(np.mean([row[name] for row in rows]))
