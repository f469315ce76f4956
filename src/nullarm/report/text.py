"""Characters that must not act: control, direction and invisible characters are made visible in every format."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable

_ACTING = re.compile(
    "["
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 and C1 controls, without tab and newline
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # direction overrides and isolates
    "\u00ad\u200b\u2028\u2029\u2060-\u2064\ufeff\ufff9-\ufffb"  # invisible, or line ends of their own
    "\ud800-\udfff\ufffe\uffff"  # no characters at all
    "\U000e0000-\U000e007f"  # tags: invisible copies of ASCII
    "]"
)
TICK_WIDTH = 24
HOVER_WIDTH = 72
HOVER_LINES = 24


def visible(text: str) -> str:
    r"""`text` with each acting character replaced by a sign for it (ESC → ␛, U+202E → ⟨U+202E⟩).

    Tab, newline, letters of any script and emoji with their joiners stay as they are.
    """
    return _ACTING.sub(_sign, text)


def plotly_text(text: str) -> str:
    """`text` as Plotly shows it unchanged: Plotly reads a subset of HTML, and `%{…}`, in its labels."""
    text = visible(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("%{", "%&#123;")
    return text.replace("\t", "    ").replace("\n", "<br>")


def hover_text(lines: Iterable[str]) -> str:
    """Lines of plain text as one Plotly hover text, wrapped and cut to fit a screen."""
    wrapped = [part for text in lines for line in text.split("\n") for part in _wrapped(line)]
    kept = wrapped if len(wrapped) <= HOVER_LINES else [*wrapped[: HOVER_LINES - 1], "…"]
    return "<br>".join(plotly_text(line) for line in kept)


def tick_text(label: str) -> str:
    """A tick label for Plotly on one line; of a long one the middle is left out, as paths differ at their ends."""
    line = " ".join(visible(label).split())
    if len(line) > TICK_WIDTH:
        line = f"{line[: TICK_WIDTH // 3]}…{line[-(TICK_WIDTH - TICK_WIDTH // 3 - 1) :]}"
    return plotly_text(line) or " "


def title_text(title: str, width: int) -> str:
    """A title for Plotly on at most two lines of `width` characters."""
    return "<br>".join(map(plotly_text, textwrap.wrap(visible(title), width, max_lines=2, placeholder=" …")))


def _wrapped(line: str) -> list[str]:
    return [line] if len(line) <= HOVER_WIDTH else textwrap.wrap(line, HOVER_WIDTH, replace_whitespace=False)


def _sign(match: re.Match[str]) -> str:
    code = ord(match.group())
    if code < 0x20:
        return chr(0x2400 + code)
    return "␡" if code == 0x7F else f"⟨U+{code:04X}⟩"
