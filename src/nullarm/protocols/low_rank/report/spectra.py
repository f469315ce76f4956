"""Where the energy of the matrices is: singular values by slot, and the ranks that hold so much of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from nullarm.protocols.low_rank.sessions import finished_cells
from nullarm.protocols.low_rank.tables import RANKS, SINGULAR_VALUES, SPECTRA
from nullarm.report import Axis, Block, Guide, Plot, PlotPanel, Series, Table, Value
from nullarm.store.study_store import StudyStore

LAYERS, POINTS = 6, 40
"""Most lines of a panel, and most points of a line."""
ROUNDING = 1e-8
"""Singular values below this share of the largest are rounding."""
TITLES = {"weight": "Singular values of the weights", "whitened": "Singular values on the calibration inputs"}
MEANS = ("break_even", "r50", "r75", "r90", "r95", "r99", "energy_at_break_even")

_Spectrum = list[float]


def spectra(store: StudyStore) -> Iterator[Block]:
    """A figure for each metric, and the table of ranks."""
    for cell, done in finished_cells(store, SPECTRA):
        ranks = done.table(RANKS).to_pylist()
        break_even = {row["slot"]: row["break_even"] for row in ranks}
        values = _values(done.table(SINGULAR_VALUES))
        for metric in dict.fromkeys(metric for metric, _, _ in values):
            yield _figure(metric, {k[1:]: v for k, v in values.items() if k[0] == metric}, break_even, cell.id)
        yield _ranks(ranks, cell.id)


def thinned(items: Sequence[int], most: int) -> list[int]:
    """Some of them, evenly, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    places = np.unique(np.linspace(0, len(items) - 1, most).round().astype(int))
    return [items[place] for place in places]


def _values(table: Any) -> dict[tuple[str, str, int], _Spectrum]:
    """By metric, slot and layer, as they were written: descending."""
    found: dict[tuple[str, str, int], _Spectrum] = defaultdict(list)
    columns = (table[name].to_pylist() for name in ("metric", "slot", "layer", "singular_value"))
    for metric, slot, layer, value in zip(*columns, strict=True):
        found[metric, slot, layer].append(value)
    return found


def _figure(metric: str, values: dict[tuple[str, int], _Spectrum], break_even: dict[str, int], cell: str) -> Plot:
    layers = thinned(sorted({layer for _, layer in values}), LAYERS)
    panels = tuple(
        PlotPanel(
            f"{slot}, break-even {break_even[slot]}",
            tuple(
                _line(layer, values[slot, layer], break_even[slot], cell) for layer in layers if (slot, layer) in values
            ),
        )
        for slot in dict.fromkeys(slot for slot, _ in values)
    )
    return Plot(
        title=TITLES.get(metric, metric),
        x=Axis("rank, relative to break-even"),
        y=Axis("σ, relative to the largest", log=True),
        panels=panels,
        guides=(Guide("x", 1.0),),
        ordered=True,
        caption="To the left of the line, factors of this rank are smaller than the matrix. At most "
        f"{LAYERS} layers and {POINTS} values of each are drawn; all are in the cell's artefact.",
    )


def _line(layer: int, values: _Spectrum, break_even: int, cell: str) -> Series:
    kept = [index for index, value in enumerate(values) if value > ROUNDING * values[0]]
    drawn = thinned(kept, POINTS)
    return Series(
        name=f"layer {layer}",
        x=[(index + 1) / break_even for index in drawn],
        y=[values[index] / values[0] for index in drawn],
        hover=[f"rank {index + 1}" for index in drawn],
        cells=((cell,),),
    )


def _ranks(rows: Sequence[dict[str, Any]], cell: str) -> Table:
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[row["metric"], row["slot"]].append(row)
    return Table(
        title="Ranks that hold so much of the energy, mean over layers",
        columns=("slot", "of", "break-even", "50 %", "75 %", "90 %", "95 %", "99 %", "energy at break-even"),
        rows=tuple(
            (slot, metric, *(_mean(mine, name) for name in MEANS)) for (metric, slot), mine in groups.items()
        ),
        cells=tuple((cell,) for _ in groups),
        caption="Energy: the sum of squared singular values. Where the rank is above break-even, factors that keep so "
        "much of it are larger than the matrix.",
    )  # fmt: skip


def _mean(rows: Sequence[dict[str, Any]], name: str) -> Value:
    known = [row[name] for row in rows if row[name] is not None]
    return float(np.mean(known)) if known else None
