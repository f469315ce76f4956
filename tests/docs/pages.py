"""The pages of the documentation, taken apart: code blocks, commands, links, tables."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block of code."""

    page: Path
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}: {self.text.splitlines()[0]}"


@cache
def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(*languages: str) -> list[Block]:
    """Every fenced block in one of the languages, page by page."""
    found = [Block(page, m[1], m[2]) for page in PAGES for m in _FENCE.finditer(text_of(page))]
    return [block for block in found if block.language in languages]


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return _FENCE.sub("", text_of(page))


def commands(program: str) -> list[list[str]]:
    """Every command line of a program, as its words: lines of shell blocks, and code in the prose or in tables."""
    lines = [line for block in blocks("bash", "sh") for line in block.text.splitlines()]
    lines += [code for page in PAGES for code in _INLINE.findall(prose(page))]
    return list(_commands(program, lines))


def _commands(program: str, lines: list[str]) -> Iterator[list[str]]:
    for line in lines:
        if not re.match(rf"([A-Z_]+=\S+ )*{program} \S", line) or "…" in line:
            continue
        words = shlex.split(line, comments=True)
        yield words[words.index(program) :]


def links(page: Path) -> list[str]:
    """Targets of a page's links that lie in this repository."""
    return [target for target in _LINK.findall(prose(page)) if "://" not in target]


def anchors(page: Path) -> set[str]:
    """Names by which GitHub links to a page's headings."""
    titles = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title) for title in _HEADING.findall(prose(page))]
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def code_words(page: Path) -> list[str]:
    """Everything in single backticks."""
    return _INLINE.findall(prose(page))


def table_rows(page: Path, heading: str) -> list[list[str]]:
    """Cells of the first table under a heading, without its head."""
    section = text_of(page).split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]
