"""A document as one HTML file that needs nothing else: no network, and for verdicts and tables no script.

Everything that is not markup of the templates is escaped by Jinja, after characters that act on a reader's screen
were made visible. A content security policy admits only the scripts written here, by hash, and no connection at all.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from nullarm.report import palette, verdicts
from nullarm.report.blocks import Code, KeyValues, Note, Table, Text, VerdictCard
from nullarm.report.charts import Chart, Heatmap, IntervalPlot, PairedPlot, Plot
from nullarm.report.citations import Citations
from nullarm.report.document import Block, Document
from nullarm.report.figure import draw
from nullarm.report.figure.parts import script_json
from nullarm.report.numbers import (
    as_number,
    effect_decimals,
    show,
    show_column,
    show_effect,
    show_interval,
    show_p,
    show_percent,
)
from nullarm.report.strip import strip
from nullarm.report.tables import chart_table, csv_link
from nullarm.report.text import visible

FOLDER = Path(__file__).parent / "templates"
TEMPLATES: Mapping[type, str] = {
    Text: "text.html.j2",
    Note: "note.html.j2",
    Code: "code.html.j2",
    KeyValues: "key_values.html.j2",
    Table: "table.html.j2",
    Heatmap: "chart.html.j2",
    Plot: "chart.html.j2",
    IntervalPlot: "chart.html.j2",
    PairedPlot: "chart.html.j2",
}
SHOWN_VALUES = 4_000
"""A chart with more values than this has no table on the page, only its CSV."""
EMBEDDED_VALUES = 200_000
"""A chart with more values than this has no CSV either."""


def render_html(document: Document) -> str:
    """The page. The same document gives the same text.

    Raises:
        ValueError: The document holds a block of an unknown type.
    """
    citations = Citations.of(document.cells)
    sections = [(s.title, [_block(block, citations) for block in s.blocks]) for s in document.sections]
    has_charts = any(isinstance(block, Chart) for s in document.sections for block in s.blocks)
    page_script = _source("report.js").replace("DARK_PARTNERS", script_json(palette.dark_partners()))
    scripts = [_plotly(), page_script] if has_charts else [page_script]
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            document=document,
            primary=[card for card in document.verdicts if card.primary],
            others=[card for card in document.verdicts if not card.primary],
            sections=sections,
            citations=citations,
            style=Markup(_style()),
            scripts=[Markup(script) for script in scripts],
            policy=_policy(scripts),
        )
    )


def _block(block: Block, citations: Citations) -> Markup:
    name = TEMPLATES.get(type(block))
    if name is None:
        raise ValueError(f"no template for a block of type {type(block).__name__}")
    context: dict[str, Any] = {"block": block, "citations": citations}
    if isinstance(block, Chart):
        table = chart_table(block)
        values = len(table.rows) * len(table.columns)
        context |= {
            "figure": draw(block, citations),
            "table": table if values <= SHOWN_VALUES else None,
            "csv": csv_link(table) if values <= EMBEDDED_VALUES else None,
            "count": values,
        }
    return Markup(_environment().get_template(name).render(context))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        finalize=_finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "show": show,
        "show_p": show_p,
        "percent": show_percent,
        "style": verdicts.style,
        "words": verdicts.words,
        "paragraphs": lambda text: [part for part in text.split("\n\n") if part.strip()],
        "relative": lambda path: "./" + quote(visible(path)),
        "slug": _slug,
    }
    environment.globals |= {
        "strip": strip,
        "gloss": verdicts.gloss,
        "csv_link": csv_link,
        "show_effect": show_effect,
        "show_interval": show_interval,
        "decimals": _decimals,
        "body": _table_body,
        "numeric": _numeric_columns,
    }
    return environment


def _finalize(value: object) -> object:
    """Applied to every expression of every template, before it is escaped."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _decimals(card: VerdictCard) -> int:
    return effect_decimals(card.interval, card.estimate, card.margin)


def _table_body(table: Table) -> list[tuple[str, ...]]:
    columns = [show_column(column) for column in zip(*table.rows, strict=True)]
    return list(zip(*columns, strict=True)) if columns else [() for _ in table.rows]


def _numeric_columns(table: Table) -> list[bool]:
    columns = zip(*table.rows, strict=True) if table.rows else ((None,) for _ in table.columns)
    return [all(v is None or as_number(v) is not None for v in column) for column in columns]


def _slug(title: str) -> str:
    """A file name for a download: letters, digits and hyphens."""
    kept = "".join(c if c.isascii() and c.isalnum() else "-" for c in title.lower())
    return "-".join(part for part in kept.split("-") if part)[:60] or "table"


def _policy(scripts: list[str]) -> str:
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" for script in scripts
    )
    # Plotly sets styles on elements and draws heatmaps as data: images; nothing may load, connect, frame or submit.
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; "
        "connect-src 'none'; form-action 'none'; base-uri 'none'"
    )


def _style() -> str:
    css = _source("report.css")
    light, dark = palette.css_variables(0), palette.css_variables(1)
    return css.replace("/*LIGHT*/", light).replace("/*DARK*/", dark)


def _source(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


@cache
def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    source: str = get_plotlyjs()
    return source
