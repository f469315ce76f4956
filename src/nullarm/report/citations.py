"""How the report names a cell: a short id where a number stands, the row of the appendix it leads to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from nullarm.report.document import CellRef

SHORT_LENGTH = 8
NAMED = 3
"""How many cells a line of text names before it says `and n more`."""


@dataclass(frozen=True, slots=True)
class Citations:
    """Names for the cells of one document."""

    short: Mapping[str, str]
    """Full id → the shortest prefix, of at least 8 characters, that tells all cells apart."""
    row: Mapping[str, int]
    """Full id → row in the appendix, from 0."""

    @classmethod
    def of(cls, cells: Iterable[CellRef]) -> Citations:
        """Names for `cells`, in the order of the appendix."""
        ids = [cell.cell_id for cell in cells]
        length = SHORT_LENGTH
        while len({i[:length] for i in ids}) < len(ids):
            length += 1
        return cls({i: i[:length] for i in ids}, {i: row for row, i in enumerate(ids)})

    def line(self, cells: tuple[str, ...]) -> str:
        """`cell 1a2b3c4d`, `cells 1a2b3c4d, 5e6f7a8b and 3 more`, or nothing."""
        if not cells:
            return ""
        named = ", ".join(self.short[cell] for cell in cells[:NAMED])
        more = f" and {len(cells) - NAMED} more" if len(cells) > NAMED else ""
        return f"cell{'s' if len(cells) > 1 else ''} {named}{more}"

    def first_row(self, cells: tuple[str, ...]) -> int | None:
        """Row of the appendix that a click on a point leads to."""
        return self.row[cells[0]] if cells else None
