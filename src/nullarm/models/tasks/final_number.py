"""The number that a worked answer ends with."""

from __future__ import annotations

import re
from decimal import Decimal

MARKER = "####"
CURRENCY = str.maketrans("", "", "$€£")
NUMBER = re.compile(
    r"(?P<sign>(?<![\w.)\]])[-−])?"  # after a digit or a bracket, or with a space behind it, a minus subtracts
    r"(?P<size>(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
)


def final_number(text: str) -> str | None:
    """The first number after `####`, else the last number of the text, written one way; None when there is none.

    Signs (hyphen and minus sign), currency signs, thousands separators and decimals are understood: `-$1,234.50` is
    `-1234.5`, `18.00` is `18`.
    """
    _, marker, after = text.partition(MARKER)
    if marker and (found := _numbers(after)):
        return found[0]
    found = _numbers(text)
    return found[-1] if found else None


def _numbers(text: str) -> list[str]:
    return [_plain(match) for match in NUMBER.finditer(text.translate(CURRENCY))]


def _plain(match: re.Match[str]) -> str:
    value = Decimal(match["size"].replace(",", ""))
    text = f"{value:f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return f"-{text}" if match["sign"] and value else text
