"""The record of a finished cell: immutable, written last, and complete only if its own hash agrees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from nullarm.errors import FormatError, IntegrityError
from nullarm.store.files import decode_table, read_json, sha256_path, size_bytes
from nullarm.store.paths import CellPaths
from nullarm.study.identity import content_hash

FORMAT = 1

Outcome = Literal["ok", "undertrained", "invalid"]
"""How a cell ended: `ok`, or with a finding that stops what depends on it."""


@dataclass(frozen=True)
class Artefact:
    """A file or directory that a cell hands on."""

    file: str
    """Path relative to the cell's directory."""
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Record:
    """What a finished cell says."""

    cell_id: str
    attempt: int
    outcome: Outcome
    metrics: Mapping[str, float | int | None]
    """Measurements of the whole cell. A measurement that could not be made is None or absent, never 0 or NaN."""
    artefacts: Mapping[str, Artefact]
    reason: str | None = None
    """Why the outcome is not `ok`."""
    seconds: float = 0.0
    """Wall time of the attempt that finished the cell."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Code, packages and machine."""

    def to_json(self) -> dict[str, Any]:
        """The record as `record.json` holds it, its own hash included."""
        body = {"format": FORMAT, **asdict(self)}
        return {**body, "sha256": content_hash(body)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], path: Path) -> Record:
        """Read back what `to_json` wrote.

        Raises:
            FormatError: A newer nullarm wrote it.
            IntegrityError: Its hash does not agree.
        """
        if isinstance(found := data.get("format"), int) and found > FORMAT:
            raise FormatError(
                f"{path}: record format {found} is newer than this nullarm reads",
                valid=f"up to {FORMAT}",
                next_command="pip install --upgrade nullarm",
            )
        body = {key: value for key, value in data.items() if key != "sha256"}
        if content_hash(body) != data.get("sha256"):
            raise IntegrityError(
                f"{path}: the record's hash does not agree", next_command="`nullarm resume` runs the cell again"
            )
        body.pop("format")
        artefacts = {name: Artefact(**value) for name, value in body["artefacts"].items()}
        return cls(**{**body, "artefacts": artefacts})


@dataclass(frozen=True)
class FinishedCell:
    """A record together with the directory that holds its artefacts."""

    record: Record
    paths: CellPaths

    def artefact(self, name: str) -> Path:
        """Path of an artefact whose content has just been checked against its hash.

        Raises:
            IntegrityError: The artefact is not recorded, missing, or not what its hash says.
        """
        known = self.record.artefacts.get(name)
        cell = self.record.cell_id
        if known is None:
            raise IntegrityError(f"cell {cell} has no artefact {name!r}", valid=sorted(self.record.artefacts))
        path = self.paths.root / known.file
        if not path.exists() or sha256_path(path) != known.sha256:
            raise IntegrityError(
                f"artefact {name!r} of cell {cell} is not what its hash says",
                next_command=f"nullarm resume {self.paths.root.parents[1]} --skip-existing",
            )
        return path

    def table(self, name: str) -> Any:
        """An artefact as a `pyarrow.Table`."""
        return decode_table(self.artefact(name).read_bytes())

    def json(self, name: str) -> Any:
        """An artefact as JSON data."""
        return read_json(self.artefact(name))


def read_record(paths: CellPaths) -> Record | None:
    """The record of a cell, or None when the cell is not finished.

    A record whose hash does not agree, or whose artefacts are missing or of another size, is no record.

    Raises:
        FormatError: A newer nullarm wrote it.
    """
    if not paths.record.exists():
        return None
    try:
        record = Record.from_json(read_json(paths.record), paths.record)
    except (IntegrityError, TypeError, KeyError, AttributeError):
        return None
    whole = all(_has_size(paths.root / a.file, a.bytes) for a in record.artefacts.values())
    return record if whole and record.cell_id == paths.root.name else None


def _has_size(path: Path, size: int) -> bool:
    return path.exists() and size_bytes(path) == size
