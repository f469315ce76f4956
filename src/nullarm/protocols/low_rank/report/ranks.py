"""How ranks were dealt out over the layers, and what was lost in each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nullarm.protocols.low_rank.sessions import finished_cells
from nullarm.protocols.low_rank.tables import COMPRESS, GROUPS
from nullarm.report import Axis, Block, Plot, PlotPanel, Series, Table, Value
from nullarm.store.study_store import StudyStore
from nullarm.study.identity import content_hash
from nullarm.study.plan import Cell

MEASURES = {
    "rank": Axis("rank", whole=True),
    "weight_error": Axis("weight error"),
    "output_error": Axis("output error"),
}
"""What is drawn by layer, with its axis."""


@dataclass(frozen=True)
class _Compressed:
    cell: Cell
    rows: Sequence[Mapping[str, Any]]

    @property
    def name(self) -> str:
        """The arm, with the number of the draw where there are several."""
        arm = str(self.cell.arm)
        return arm if self.cell.replicate is None else f"{arm} {self.cell.replicate}"

    @property
    def compression(self) -> Mapping[str, Any]:
        said: Mapping[str, Any] = self.cell.parameters["compression"]
        return said

    @property
    def allocation(self) -> str:
        return str(self.compression["allocation"]["kind"])

    @property
    def family(self) -> str:
        """Equal for arms that differ in nothing but how ranks are dealt out."""
        others = {name: value for name, value in self.compression.items() if name != "allocation"}
        return content_hash([others, self.cell.parameters["numbers"]])


def ranks(store: StudyStore) -> Iterator[Block]:
    """Figures of arms that differ in how ranks were dealt out, and the errors of all compressed arms as a table."""
    seed = store.lock.study.seeds[0]
    found = [
        _Compressed(cell, done.table(GROUPS).to_pylist())
        for cell, done in finished_cells(store, COMPRESS)
        if cell.seed == seed
    ]
    families: dict[str, list[_Compressed]] = defaultdict(list)
    for one in found:
        families[one.family].append(one)
    for members in families.values():
        if any(one.allocation != "uniform" for one in members):
            yield from _figures(_first_uniform_and_others(members))
    if found:
        yield _errors(found)


def _first_uniform_and_others(members: Sequence[_Compressed]) -> list[_Compressed]:
    uniform = [one for one in members if one.allocation == "uniform"]
    return [*uniform[:1], *(one for one in members if one.allocation != "uniform")]


def _figures(members: Sequence[_Compressed]) -> Iterator[Plot]:
    """One for each group of slots."""
    for slots in dict.fromkeys(row["slots"] for one in members for row in one.rows):
        panels = tuple(
            PlotPanel(axis.label, tuple(_line(one, slots, measure) for one in members), axis)
            for measure, axis in MEASURES.items()
        )
        names = ", ".join(dict.fromkeys(str(one.cell.arm) for one in members))
        yield Plot(
            title=f"By layer, {slots}: {names}",
            x=Axis("layer", whole=True),
            y=MEASURES["rank"],
            panels=panels,
            caption="At equal bytes. Errors are relative Frobenius norms, that of the output on calibration inputs.",
        )


def _line(one: _Compressed, slots: str, measure: str) -> Series:
    rows = sorted((row for row in one.rows if row["slots"] == slots), key=lambda row: int(row["layer"]))
    return Series(
        name=one.name,
        x=[row["layer"] for row in rows],
        y=[row[measure] for row in rows],
        hover=[f"break-even {row['break_even']}{', above it' if row['above_break_even'] else ''}" for row in rows],
        cells=((one.cell.id,),),
        style="line+points",
    )


def _errors(found: Sequence[_Compressed]) -> Table:
    return Table(
        title="What was lost of the matrices, mean over groups",
        columns=("arm", "groups", "least rank", "largest rank", "bytes", "dense bytes", "weight error", "output error",
                 "above break-even"),
        rows=tuple(map(_lost, found)),
        cells=tuple((one.cell.id,) for one in found),
        caption="At the first seed. A group is the matrices of a layer that share a basis; an online one is looked at "
        "as it was before the stream.",
    )  # fmt: skip


def _lost(one: _Compressed) -> tuple[Value, ...]:
    known = [row["rank"] for row in one.rows if row["rank"] is not None]
    return (
        one.name, len(one.rows), min(known, default=None), max(known, default=None),
        *(sum(row[name] for row in one.rows) for name in ("bytes", "dense_bytes")),
        *(float(np.mean([row[name] for row in one.rows])) for name in ("weight_error", "output_error")),
        sum(row["above_break_even"] for row in one.rows),
    )  # fmt: skip
