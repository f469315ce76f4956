"""What the gauge did, and what the stream did to the bases: how they got there, and whether they moved at all."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from nullarm.protocols.low_rank.sessions import finished_cells
from nullarm.protocols.low_rank.tables import COMPRESS, HISTORY
from nullarm.report import Axis, Block, Note, Plot, PlotPanel, Series, Table
from nullarm.store.study_store import StudyStore
from nullarm.study.plan import Cell

MOVED = {"drift": "drift of the inputs, mean over groups", "turned": "turn of the basis, mean over groups"}
"""Columns of the online history, with the titles of their panels."""

Made = tuple[Cell, Mapping[str, Any]]
"""A cell and its history."""


def adaptation(store: StudyStore) -> Iterator[Block]:
    """At the first seed; nothing where no arm has a gauge or adapts a basis."""
    seed = store.lock.study.seeds[0]
    made = [
        (cell, done.json(HISTORY))
        for cell, done in finished_cells(store, COMPRESS)
        if HISTORY in done.record.artefacts and cell.seed == seed
    ]
    if gauges := [one for one in made if "gauge" in one[1]]:
        yield from _inert(gauges)
        yield _gauges(gauges)
        yield _energies(gauges)
    if streams := [one for one in made if "online" in one[1]]:
        yield from _unmoved(streams)
        yield _streams(streams)


def _inert(gauges: Sequence[Made]) -> Iterator[Note]:
    for cell, history in gauges:
        if history["gauge"]["moved"] == 0:
            asked = cell.parameters["compression"]["gauge"]["fitted"]
            why = (
                "with matrices that only read the residual stream, or only write to it, there is nothing to trade"
                if asked
                else "as its settings ask"
            )
            yield Note(f"{cell.arm}: g = 1, {why}. The gauge did nothing.")


def _gauges(gauges: Sequence[Made]) -> Table:
    return Table(
        title="Gauges",
        columns=("arm", "iterations", "E at g = 1", "E at the end", "largest |log g|"),
        rows=tuple(
            (cell.arm, len(fit["energy"]) - 1, fit["energy"][0], fit["energy"][-1], fit["moved"])
            for cell, fit in ((cell, history["gauge"]) for cell, history in gauges)
        ),
        cells=tuple((cell.id,) for cell, _ in gauges),
        caption="E counts errors in units that g itself sets, so that its fall is no gain by itself: what the gauge is "
        "worth is the perplexity.",
    )


def _energies(gauges: Sequence[Made]) -> Plot:
    series = tuple(
        Series(
            name=str(cell.arm),
            x=list(range(len(energy := history["gauge"]["energy"]))),
            y=[value / energy[0] if energy[0] else None for value in energy],
            cells=((cell.id,),),
            style="line+points",
        )
        for cell, history in gauges
    )
    return Plot(
        title="Gauge: E by iteration",
        x=Axis("iteration", whole=True),
        y=Axis("E, relative to g = 1"),
        panels=(PlotPanel("", series),),
    )


def _unmoved(streams: Sequence[Made]) -> Iterator[Note]:
    for cell, history in streams:
        if all(row["turned"] == 0 for row in history["online"]):
            yield Note(f"{cell.arm}: no basis has moved.")


def _streams(streams: Sequence[Made]) -> Plot:
    panels = tuple(
        PlotPanel(title, tuple(_by_block(cell, history["online"], column) for cell, history in streams), Axis(column))
        for column, title in MOVED.items()
    )
    return Plot(
        title="Online: what the stream did",
        x=Axis("block", whole=True),
        y=Axis("share"),
        panels=panels,
        caption="Drift: the norm of what groups read in the compressed model less what they read in the original, over "
        "the norm of the latter. Turn: root mean square sine of the angles between the basis and the one at the start.",
    )


def _by_block(cell: Cell, rows: Sequence[Mapping[str, Any]], column: str) -> Series:
    values: dict[int, list[float]] = defaultdict(list)
    for row in rows:
        values[row["block"]].append(row[column])
    return Series(
        name=str(cell.arm),
        x=list(values),
        y=[float(np.mean(block)) for block in values.values()],
        cells=((cell.id,),),
        style="line+points",
    )
