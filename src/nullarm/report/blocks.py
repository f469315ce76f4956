"""What a report is made of, apart from charts: verdicts, prose, tables, provenance.

All text is plain text. The renderers escape it, so a block may hold model output, file names and other people's
strings as they are. A number that is missing is None.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nullarm.report.verdicts import Question

Value = str | int | float | bool | None
"""What a table may hold. None is missing and shows as a dash."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictCard:
    """What may be said about one declared contrast, on how much evidence, and how sure."""

    name: str
    """The contrast, for example `audited − mean of its shuffles`."""
    verdict: str
    """One of the words in `nullarm.report.verdicts.VERDICTS`; another word is shown without a gloss."""
    reason: str
    """Why this verdict, in one sentence."""
    question: Question = "superiority"
    """Which kind of claim was tested; a confirmed non-inferiority says something else than a confirmed effect."""
    estimate: float | None = None
    interval: tuple[float, float] | None = None
    """Lower and upper end; an infinite end makes it one-sided."""
    level: float = 0.95
    """Confidence level of `interval`."""
    unit: str = ""
    """Unit of the estimate, the interval, the margin and the minimum detectable effect."""
    test: str = ""
    """How p was computed, for example `within-seed randomisation, exact, 1,296 arrangements`."""
    p_value: float | None = None
    p_adjusted: float | None = None
    n: int | None = None
    n_unit: str = ""
    """What `n` counts, for example `seeds × 200 items`."""
    n_needed: int | None = None
    """The `n` that would settle the question."""
    margin: float | None = None
    """Declared margin δ > 0: smaller effects do not matter."""
    minimum_detectable_effect: float | None = None
    cells: tuple[str, ...] = ()
    """Ids of the cells the verdict rests on."""
    primary: bool = False
    exploratory: bool = False
    """The analysis is not the one declared before the run."""


@dataclass(frozen=True, slots=True)
class Text:
    """Prose; a blank line starts a new paragraph."""

    text: str


@dataclass(frozen=True, slots=True)
class Note:
    """Something the reader must not miss."""

    text: str
    kind: Literal["note", "warning"] = "note"


@dataclass(frozen=True, slots=True)
class Code:
    """Preformatted text: a command, a log, the closing block of a runbook."""

    text: str
    title: str = ""


@dataclass(frozen=True, slots=True)
class KeyValues:
    """Names and values, for provenance and settings."""

    title: str
    items: tuple[tuple[str, Value], ...]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of values, each row with the cells it was computed from.

    Raises:
        ValueError: A row has not one value per column, or `cells` not one entry per row.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Value, ...], ...]
    cells: tuple[tuple[str, ...], ...] = ()
    """Cell ids per row; empty when no row rests on a cell."""
    caption: str = ""

    def __post_init__(self) -> None:
        for index, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ValueError(
                    f"table {self.title!r}: row {index} has {len(row)} values for {len(self.columns)} columns"
                )
        if self.cells and len(self.cells) != len(self.rows):
            raise ValueError(f"table {self.title!r}: cells for {len(self.cells)} rows, but {len(self.rows)} rows")
