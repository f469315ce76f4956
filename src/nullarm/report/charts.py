"""The charts of a report: what is drawn, not how.

As in `nullarm.report.blocks`, text is plain text and a missing number is None; a number that is not finite is drawn
as missing. Every chart says which cells its points come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Numbers = Sequence[float | None]
Cells = tuple[tuple[str, ...], ...]
"""Cell ids per point; one entry stands for all points."""


@dataclass(frozen=True, slots=True)
class HeatmapPanel:
    """One map, for example of one arm.

    Raises:
        ValueError: `values` or `hover` is not [len(y), len(x)].
    """

    title: str
    x: tuple[str, ...]
    """Column labels, left to right."""
    y: tuple[str, ...]
    """Row labels, from the top down."""
    values: Sequence[Numbers]
    """[len(y), len(x)]."""
    hover: Sequence[Sequence[str]] = ()
    """[len(y), len(x)] texts shown under the value, or empty."""
    cells: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, matrix in (("values", self.values), ("hover", self.hover)):
            shape = [len(row) for row in matrix]
            if (name == "values" or len(matrix)) and shape != [len(self.x)] * len(self.y):
                raise ValueError(
                    f"heatmap {self.title!r}: {name} must be [{len(self.y)}, {len(self.x)}], rows have {shape}"
                )


@dataclass(frozen=True, slots=True)
class Heatmap:
    """Panels side by side on one colour scale."""

    title: str
    x_label: str
    y_label: str
    value_label: str
    panels: tuple[HeatmapPanel, ...]
    scale: Literal["linear", "log", "diverging"] = "linear"
    """`log` leaves out values ≤ 0; `diverging` is symmetric about 0."""
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Axis:
    """Label and scale of an axis."""

    label: str
    log: bool = False
    whole: bool = False
    """What is counted: ticks stand at whole numbers only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Points of one kind, joined or not.

    Raises:
        ValueError: Two of the fields disagree about the number of points.
    """

    name: str
    """Series of one name share a colour and a legend entry in all panels of a plot."""
    x: Numbers
    y: Numbers
    y_interval: Sequence[tuple[float, float] | None] = ()
    """Lower and upper end per point."""
    interval_style: Literal["bars", "band"] = "bars"
    """Error bars, or a band along the line: better where many points or lines stand close."""
    hover: Sequence[str] = ()
    cells: Cells = ()
    style: Literal["line", "points", "line+points", "step"] = "line"

    def __post_init__(self) -> None:
        n = len(self.x)
        for name, length, allowed in (
            ("y", len(self.y), (n,)),
            ("y_interval", len(self.y_interval), (0, n)),
            ("hover", len(self.hover), (0, n)),
            ("cells", len(self.cells), (0, 1, n)),
        ):
            if length not in allowed:
                raise ValueError(f"series {self.name!r}: {n} x but {length} {name}")

    def cells_at(self, index: int) -> tuple[str, ...]:
        """Ids of the cells that point `index` rests on."""
        if not self.cells:
            return ()
        return self.cells[0] if len(self.cells) == 1 else self.cells[index]


@dataclass(frozen=True, slots=True)
class Guide:
    """A straight line at one value of an axis: a gate, a cap, a baseline."""

    axis: Literal["x", "y"]
    value: float
    label: str = ""
    """Stands at the end of the line and may cover points there; empty where the caption says what it is."""


@dataclass(frozen=True, slots=True)
class PlotPanel:
    """One coordinate system with its series."""

    title: str
    series: tuple[Series, ...]
    y: Axis | None = None
    """An axis of its own, where panels show different measurements; else the plot's, equal in all panels."""


@dataclass(frozen=True, slots=True)
class Plot:
    """Lines, scatter, steps: panels side by side, on equal axes but where a panel has its own."""

    title: str
    x: Axis
    y: Axis
    panels: tuple[PlotPanel, ...]
    guides: tuple[Guide, ...] = ()
    ordered: bool = False
    """The series have an order (layers, ranks, steps), so they are coloured along a ramp."""
    caption: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class IntervalRow:
    """An estimate with its interval; an infinite end makes it one-sided."""

    label: str
    estimate: float | None
    interval: tuple[float, float] | None
    verdict: str = ""
    """Colours the row and stands beside its label."""
    cells: tuple[str, ...] = ()
    level: float | None = None
    """Confidence level of `interval`, where it is not the plot's."""


@dataclass(frozen=True, slots=True)
class IntervalPlot:
    """Forest plot: estimates with intervals against the zero line and the band of ± margin."""

    title: str
    rows: tuple[IntervalRow, ...]
    x_label: str
    margin: float | None = None
    level: float = 0.95
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Point:
    """One measured value and where it comes from."""

    value: float | None
    label: str = ""
    cells: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Pair:
    """A treated value beside the controls it is compared with, for example of one seed."""

    label: str
    treated: Point
    controls: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class PairedPlot:
    """Treated against controls, pair by pair."""

    title: str
    treatment: str
    control: str
    pairs: tuple[Pair, ...]
    x_label: str
    y: Axis
    caption: str = ""


Chart = Heatmap | Plot | IntervalPlot | PairedPlot
