"""The document: verdicts first, then sections of blocks, then every cell that anything rests on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nullarm.report.blocks import Code, KeyValues, Note, Table, Text, VerdictCard
from nullarm.report.charts import Chart, Heatmap, IntervalPlot, PairedPlot, Plot

Block = Text | Note | Code | KeyValues | Table | Chart


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and what stands under it."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class CellRef:
    """A cell as the appendix lists it."""

    cell_id: str
    label: str
    """For people: arm, seed, stage."""
    outcome: str
    """How the cell ended."""
    record: str = ""
    """Path of its record, relative to the report; empty when there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A whole report.

    Raises:
        ValueError: A cell is listed twice, or something rests on a cell that is not listed.
    """

    title: str
    question: str
    """What was asked, in one sentence."""
    subtitle: str = ""
    """Which study, which protocol, when; no date is shown that is not given here."""
    verdicts: tuple[VerdictCard, ...] = ()
    sections: tuple[Section, ...] = ()
    cells: tuple[CellRef, ...] = ()

    def __post_init__(self) -> None:
        known: set[str] = set()
        for cell in self.cells:
            if cell.cell_id in known:
                raise ValueError(f"cell {cell.cell_id!r} is listed twice")
            known.add(cell.cell_id)
        for place, cell_id in self.citations():
            if cell_id not in known:
                raise ValueError(f"{place} rests on cell {cell_id!r}, which is not among the document's cells")

    def citations(self) -> Iterator[tuple[str, str]]:
        """Pairs (place, cell id) for everything that rests on a cell."""
        for card in self.verdicts:
            yield from ((f"verdict {card.name!r}", cell) for cell in card.cells)
        for section in self.sections:
            for block in section.blocks:
                yield from ((f"{type(block).__name__} {_title(block)!r}", cell) for cell in _cited(block))


def _title(block: Block) -> str:
    return "" if isinstance(block, Text | Note) else block.title


def _cited(block: Block) -> Iterator[str]:
    groups: Iterator[tuple[str, ...]] = iter(())
    if isinstance(block, Table):
        groups = iter(block.cells)
    elif isinstance(block, Heatmap):
        groups = (panel.cells for panel in block.panels)
    elif isinstance(block, Plot):
        groups = (cells for panel in block.panels for series in panel.series for cells in series.cells)
    elif isinstance(block, IntervalPlot):
        groups = (row.cells for row in block.rows)
    elif isinstance(block, PairedPlot):
        groups = (point.cells for pair in block.pairs for point in (pair.treated, *pair.controls))
    for group in groups:
        yield from group
