"""Reading the source's JSON files, ours and those of the original tool, one record at a time."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn, TextIO

from nullarm.errors import FormatError, UsageError
from nullarm.protocols.residual.export.schema import FORMAT_VERSION, Record

CHUNK = 1 << 20
"""Characters read at a time; a record that is longer is read in chunks that double."""
VALID = "an array of records with `layers` (single pass), or with `runs` and `pairwise` (multi-pass)"

_DECODER = json.JSONDecoder(parse_constant=lambda name: None)
_SPACE = re.compile(r"[ \t\n\r]*")


def read_records(path: Path) -> Iterator[Record]:
    """Records of a file, in its order; one of them is in memory at a time.

    NaN and infinities, which the original tool lets through, are read as None. Keys that no reader here needs are not
    looked at: `json_schema.check_record` is the exact check.

    Raises:
        UsageError: The file cannot be read.
        FormatError: The file is of neither schema, damaged, or of a newer format.
    """
    try:
        with open(path, encoding="utf-8") as file:
            for index, record in enumerate(_elements(file, path)):
                _require_schema(record, f"{path}: record {index}")
                yield record
    except UnicodeDecodeError as error:
        raise FormatError(f"{path} is no text in UTF-8", valid=VALID) from error
    except OSError as error:
        raise UsageError(
            f"cannot read {path}: {error.strerror}", valid="a JSON file of a residual comparison"
        ) from error


def _elements(file: TextIO, path: Path) -> Iterator[Any]:
    """The elements of the array that a file holds."""
    window = _Window(file)
    if (found := window.next()) != "[":
        _refuse(f"{path} holds no JSON array", f"{found}…" if found else "an empty file")
    window.skip()
    expected = "{]"
    while found != "]":
        found = window.next()
        if not found or found not in expected:
            _refuse(f"{path} is damaged or cut off", found or "the end of the file")
        if found == "{":
            try:
                yield window.value()
            except json.JSONDecodeError as error:
                _refuse(f"{path} is damaged or cut off: {error.msg}")
            expected = ",]"
        else:
            window.skip()
            expected = "{"
    if window.next():
        _refuse(f"{path} goes on after its array")


class _Window:
    """The part of a file that is in memory, and how far it is read."""

    def __init__(self, file: TextIO) -> None:
        self._file, self._text, self._at = file, "", 0

    def next(self) -> str:
        """The next character that is no space; empty at the end."""
        while (at := _at_end_of_space(self._text, self._at)) == len(self._text):
            if not self._grow():
                return ""
        self._at = at
        return self._text[at]

    def skip(self) -> None:
        """Pass over the next character."""
        self._at += 1

    def value(self) -> Any:
        """The value that begins here."""
        while True:
            try:
                value, self._at = _DECODER.raw_decode(self._text, self._at)
                return value
            except json.JSONDecodeError:
                if not self._grow():
                    raise

    def _grow(self) -> bool:
        rest = self._text[self._at :]
        more = self._file.read(max(CHUNK, len(rest)))
        self._text, self._at = rest + more, 0
        return bool(more)


def _at_end_of_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _require_schema(record: Record, where: str) -> None:
    version = record.get("format_version", FORMAT_VERSION)
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise FormatError(
            f"{where} has format version {version}, newer than this nullarm reads", valid=f"up to {FORMAT_VERSION}",
            next_command="pip install --upgrade nullarm",
        )  # fmt: skip
    if "runs" in record and "pairwise" in record:
        for kind in ("runs", "pairwise"):
            _require(isinstance(record[kind], list), f"{where}.{kind} is no array")
            for index, entry in enumerate(record[kind]):
                _require_layers(entry, f"{where}.{kind}[{index}]")
    elif "layers" in record:
        _require_layers(record, where)
    else:
        _refuse(f"{where} is of neither schema", sorted(record))
    _require(isinstance(record.get("tokens"), list), f"{where} has no `tokens`")


def _require_layers(entry: Any, where: str) -> None:
    _require(isinstance(entry, dict) and isinstance(entry.get("layers"), dict), f"{where} has no `layers`")
    for layer, positions in entry["layers"].items():
        _require(layer.isdecimal() and isinstance(positions, dict), f"{where}: layer {layer!r} is none")
        for position, numbers in positions.items():
            _require(
                position.isdecimal() and isinstance(numbers, dict), f"{where}: position {layer}.{position} is none"
            )


def _require(holds: bool, problem: str) -> None:
    if not holds:
        _refuse(problem)


def _refuse(problem: str, value: object = None) -> NoReturn:
    raise FormatError(problem, value=value, valid=VALID)
