"""Reports: a document of content blocks, written as one offline HTML file or as Markdown.

This layer knows no protocol. A protocol builds a `Document`; `write_html` and `write_markdown` put it on disk.
"""

from __future__ import annotations

from pathlib import Path

from nullarm.report.blocks import Code, KeyValues, Note, Table, Text, Value, VerdictCard
from nullarm.report.charts import (
    Axis,
    Guide,
    Heatmap,
    HeatmapPanel,
    IntervalPlot,
    IntervalRow,
    Pair,
    PairedPlot,
    Plot,
    PlotPanel,
    Point,
    Series,
)
from nullarm.report.document import Block, CellRef, Document, Section
from nullarm.store.atomic import write_bytes

__all__ = [
    "Axis",
    "Block",
    "CellRef",
    "Code",
    "Document",
    "Guide",
    "Heatmap",
    "HeatmapPanel",
    "IntervalPlot",
    "IntervalRow",
    "KeyValues",
    "Note",
    "Pair",
    "PairedPlot",
    "Plot",
    "PlotPanel",
    "Point",
    "Section",
    "Series",
    "Table",
    "Text",
    "Value",
    "VerdictCard",
    "write_html",
    "write_markdown",
]


def write_html(document: Document, path: Path) -> None:
    """Write `document` to `path` as one HTML file that needs no network; atomically.

    Raises:
        StorageError: The disk is full, read-only or gone.
    """
    from nullarm.report.html import render_html  # Jinja and Plotly are loaded only when a page is written

    write_bytes(path, render_html(document).encode())


def write_markdown(document: Document, path: Path) -> None:
    """Write `document` to `path` as Markdown; atomically.

    Raises:
        StorageError: The disk is full, read-only or gone.
    """
    from nullarm.report.markdown import render_markdown

    write_bytes(path, render_markdown(document).encode())
