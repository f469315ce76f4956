"""Rows of a data set: from a local JSONL file, or from the hub where that can be reached."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nullarm.errors import DatasetError
from nullarm.models.hashing import file_sha256
from nullarm.models.tasks.base import Split

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Source:
    """Where a public data set is read from.

    Attributes:
        hub_id: Name on the hub.
        subset: Its configuration there.
        revision: Its revision there.
        path: Directory with a local copy, one `<split>.jsonl` each; None for the hub.
    """

    hub_id: str
    subset: str
    revision: str
    path: str | None

    def rows(self, split: str) -> list[Row]:
        """All rows of a split, in their order.

        Raises:
            DatasetError: The copy is missing or malformed, or the hub cannot be reached.
        """
        return [row for _, row in self.placed(split)]

    def placed(self, split: str, first: int | None = None) -> list[tuple[str, Row]]:
        """Rows of a split in their order, each with its place: file and line, or data set, subset, split and number.

        Args:
            split: Name of the published split.
            first: How many rows from its beginning; None for all.

        Raises:
            DatasetError: The copy is missing or malformed, or the hub cannot be reached.
        """
        if self.path is not None:
            file = self._file(split)
            return [(f"{file}, line {number}", row) for number, row in read_jsonl(file)[:first]]
        asked = split if first is None else f"{split}[:{first}]"
        return [(f"{self.hub_id} {self.subset} {split}-{n}", row) for n, row in enumerate(_hub_rows(self, asked))]

    def content(self, splits: Sequence[str]) -> dict[str, str]:
        """What names the rows: hashes of the local files, or hub id and revision, which are believed."""
        if self.path is None:
            return {"hub": self.hub_id, "subset": self.subset, "revision": self.revision}
        return {split: hash_of(self._file(split)) for split in splits}

    def _file(self, split: str) -> Path:
        return Path(self.path or ".").expanduser() / f"{split}.jsonl"


def read_jsonl(path: Path) -> list[tuple[int, Row]]:
    """Rows with their line numbers, counted from 1; blank lines are passed over.

    Raises:
        DatasetError: The file is missing, empty, not UTF-8, or a line is not a JSON object.
    """
    rows: list[tuple[int, Row]] = []
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        raise DatasetError("the data file is missing", value=str(path), next_command=f"ls {path.parent}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"the data file cannot be read: {error}", value=str(path)) from error
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DatasetError(f"{path}, line {number} is not JSON: {error}", value=line) from error
        if not isinstance(row, dict):
            raise DatasetError(f"{path}, line {number} is not a JSON object", value=line)
        rows.append((number, row))
    if not rows:
        raise DatasetError("the data file is empty", value=str(path), valid="one JSON object per line")
    return rows


def hash_of(path: Path) -> str:
    """SHA-256 of a data file.

    Raises:
        DatasetError: It is missing or cannot be read.
    """
    try:
        return file_sha256(path)
    except OSError as error:
        raise DatasetError(
            f"the data file cannot be read: {error.strerror}", value=str(path), next_command=f"ls {path.parent}"
        ) from error


def text_field(row: Row, name: str, where: str) -> str:
    """A text in a row.

    Raises:
        DatasetError: It is missing or no text.
    """
    if name not in row:
        raise DatasetError(f"{where} lacks the key {name!r}", value=sorted(row), valid=f"an object with {name!r}")
    if not isinstance(row[name], str):
        raise DatasetError(f"{where}: {name!r} is not text", value=row[name], valid="a string")
    return str(row[name])


def chosen(split: Split, rows: int, *, seed: int, dev_items: int, test_items: int | None) -> list[int]:
    """Which of the published rows a split has: dev is a random part of the training rows, test of the test rows.

    Args:
        split: Train and dev divide the published training rows between them.
        rows: How many rows were published, for training or for testing.
        seed: Of the choice; the same on every machine.
        dev_items: Size of dev.
        test_items: Size of test; None for all.

    Raises:
        DatasetError: A part does not fit into its whole.
    """
    if split == "test":
        return random_part(rows, test_items, seed=seed)
    dev = _sample(rows, dev_items, seed)
    return [n for n in range(rows) if (n in dev) == (split == "dev")]


def random_part(rows: int, wanted: int | None, *, seed: int) -> list[int]:
    """A random part of the published rows, in their order; None wants them all.

    Raises:
        DatasetError: The part does not fit into its whole.
    """
    return list(range(rows)) if wanted in (None, rows) else sorted(_sample(rows, int(wanted or 0), seed))


def _sample(rows: int, wanted: int, seed: int) -> set[int]:
    if not 0 < wanted < rows:
        raise DatasetError("the part does not fit into the published rows", value=wanted, valid=f"1 to {rows - 1}")
    return set(random.Random(seed).sample(range(rows), wanted))


def _hub_rows(source: Source, split: str) -> list[Row]:
    copy = f"path: a directory with {split.partition('[')[0]}.jsonl"
    try:
        from datasets import load_dataset
    except ImportError:
        raise DatasetError(
            "reading from the hub needs the `data` extra", value=source.hub_id, valid=copy,
            next_command="pip install 'nullarm[data]'",
        ) from None  # fmt: skip
    try:
        return list(load_dataset(source.hub_id, source.subset, split=split, revision=source.revision))
    except Exception as error:  # the library raises its own, the hub's and the network's
        raise DatasetError(
            f"the data set is neither cached nor reachable: {' '.join(str(error).split())[:200]}",
            value=source.hub_id, valid=copy,
            next_command=f"hf download --repo-type dataset {source.hub_id} --revision {source.revision}",
        ) from error  # fmt: skip
