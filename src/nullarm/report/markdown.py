"""A document as GitHub-flavoured Markdown: verdicts first, figures as tables of their numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from nullarm.report.blocks import Code, KeyValues, Note, Table, Text, Value, VerdictCard
from nullarm.report.citations import Citations
from nullarm.report.document import Block, Document
from nullarm.report.numbers import (
    effect_decimals,
    show,
    show_column,
    show_effect,
    show_interval,
    show_p,
    show_percent,
)
from nullarm.report.tables import CELLS, chart_table
from nullarm.report.text import visible
from nullarm.report.verdicts import gloss, style, words

SHOWN_VALUES = 1_500
"""A chart with more values than this is left to the HTML report."""

_MARKUP = re.compile(
    r"[\\`*<>|~&$@]|\](?=[(\[:])"  # what acts anywhere
    r"|(?<![^\W_])_|_(?![^\W_])"  # an underscore acts at the edge of a word only
    r"|:(?=//)|(?<=\bwww)\."  # what would become a link by itself
    r"|^(?:\#(?=[\s#]|$)|[+-](?=[\s-]|$)|\d{1,9}(?=[.)](?:\s|$)))",  # what acts at the start of a line
    re.IGNORECASE,
)


def render_markdown(document: Document) -> str:
    """The page. The same document gives the same text."""
    citations = Citations.of(document.cells)
    under = [inline(text) for text in (document.title, document.subtitle) if text]
    parts = [f"# {inline(document.question)}", " · ".join(under)]
    for card in sorted(document.verdicts, key=lambda card: not card.primary):
        parts += _verdict(card, citations)
    for section in document.sections:
        parts.append(f"## {inline(section.title)}")
        for block in section.blocks:
            parts += _block(block, citations)
    parts += _cells(document)
    return "\n\n".join(part for part in parts if part) + "\n"


def inline(text: str) -> str:
    """Plain text as Markdown that reads as itself, on one line: no markup, no HTML, no link."""
    return _MARKUP.sub(_escaped, " ".join(visible(text).split()))


def _escaped(match: re.Match[str]) -> str:
    found = match.group()
    return f"{found}\\" if found.isdigit() else f"\\{found}"


def _verdict(card: VerdictCard, citations: Citations) -> Iterator[str]:
    decimals = effect_decimals(card.interval, card.estimate, card.margin)
    marks = "".join([" (primary)" if card.primary else "", " (exploratory)" if card.exploratory else ""])
    yield f"## {style(card.verdict).sign} {inline(words(card.verdict))}: {inline(card.name)}{marks}"
    yield f"**{inline(card.reason)}** {gloss(card.verdict, card.question)}".rstrip()
    rows: list[tuple[str, str]] = [
        ("estimate", f"{show_effect(card.estimate, decimals)} {card.unit}".rstrip()),
        (f"{show_percent(card.level)} interval", show_interval(card.interval, decimals)),
        ("p", show_p(card.p_value)),
        ("p, adjusted", show_p(card.p_adjusted)),
        ("n", f"{show(card.n)} {card.n_unit}".rstrip()),
        ("margin", f"± {show(card.margin)}" if card.margin else "none declared"),
        ("minimum detectable effect", show_effect(card.minimum_detectable_effect, decimals, sign=False)),
        ("n that would settle it", show(card.n_needed)),
        ("test", card.test or "—"),
        ("rests on", _ids(card.cells, citations) or "—"),
    ]
    yield _grid(("", ""), rows)


def _block(block: Block, citations: Citations) -> Iterator[str]:
    if isinstance(block, Text):
        yield from (inline(part) for part in block.text.split("\n\n"))
    elif isinstance(block, Note):
        yield f"> **{block.kind.capitalize()}:** {inline(block.text)}"
    elif isinstance(block, Code):
        yield _heading(block.title)
        yield _fenced(block.text)
    elif isinstance(block, KeyValues):
        yield _heading(block.title)
        yield _grid(("", ""), ((name, show(value)) for name, value in block.items))
    elif isinstance(block, Table):
        yield from _table(block, citations)
    else:
        table = chart_table(block)
        if len(table.rows) * len(table.columns) <= SHOWN_VALUES:
            yield from _table(table, citations)
        else:
            yield _heading(block.title)
            yield f"{len(table.rows):,} rows of numbers: see the HTML report."
        yield inline(block.caption)


def _table(table: Table, citations: Citations) -> Iterator[str]:
    yield _heading(table.title)
    columns: list[list[str]] = [show_column(column) for column in zip(*table.rows, strict=True)]
    heads = table.columns
    if table.cells:
        columns.append([_ids(cells, citations) for cells in table.cells])
        heads = (*heads, CELLS)
    yield _grid(heads, zip(*columns, strict=True))
    if table.caption:
        yield inline(table.caption)


def _cells(document: Document) -> Iterator[str]:
    if document.cells:
        yield "## Cells"
        rows: list[tuple[Value, ...]] = [(c.cell_id, c.label, c.outcome, c.record) for c in document.cells]
        yield _grid(("cell", "what it ran", "outcome", "record"), ([str(v) for v in row] for row in rows))


def _ids(cells: tuple[str, ...], citations: Citations) -> str:
    return " ".join(citations.short[cell] for cell in cells)


def _heading(title: str) -> str:
    return f"### {inline(title)}" if title else ""


def _grid(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [[inline(head) for head in heads]]
    lines.append(["---"] * len(lines[0]))
    lines += [[inline(value) for value in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _fenced(text: str) -> str:
    """A code block whose fence is longer than any run of backticks in it."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{visible(text)}\n{fence}"
