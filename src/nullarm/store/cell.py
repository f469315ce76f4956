"""Writing one cell: chunks as the work goes on, artefacts, and the record as the commit."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nullarm.errors import IntegrityError, LeaseLost
from nullarm.store.atomic import (
    TEMP_PREFIX,
    make_directory,
    publish_directory,
    publish_file,
    storage_errors,
    sweep_temporary,
    write_bytes,
)
from nullarm.store.files import (
    decode_table,
    encode_json,
    encode_table,
    read_json,
    sha256_bytes,
    sha256_path,
    size_bytes,
    write_json,
)
from nullarm.store.lease import fenced
from nullarm.store.paths import CellPaths
from nullarm.store.record import Artefact, FinishedCell, Outcome, Record, read_record

if TYPE_CHECKING:
    import pyarrow as pa

HASH_LENGTH = 16
"""Hex digits of a content hash that go into a file name; the record keeps the whole."""


class CellWriter:
    """The only way to write to a cell. Every commit is atomic and refused once a later attempt owns the cell.

    Args:
        paths: The cell's files.
        attempt: The fencing token: number of the attempt that this writer works for.

    Raises:
        LeaseLost: A later attempt owns the cell, or it is finished already.
    """

    def __init__(self, paths: CellPaths, attempt: int) -> None:
        self.paths = paths
        self.attempt = attempt
        make_directory(paths.chunks, paths.artefacts, paths.scratch)
        with fenced(paths, attempt):
            self._refuse_if_finished()
            paths.record.unlink(missing_ok=True)  # one that is not valid, and must not become so again half way
            for directory in (paths.root, paths.chunks, paths.artefacts):
                sweep_temporary(directory)
        self._artefacts: dict[str, Artefact] = {}

    def json_chunk(self, key: str, make: Callable[[], Any]) -> Any:
        """The chunk `key` as JSON data: read back when it is committed, made and committed when it is not.

        Raises:
            LeaseLost: A later attempt owns the cell.
        """
        return json.loads(self._chunk(key, "json", lambda: encode_json(make())))

    def table_chunk(self, key: str, make: Callable[[], pa.Table]) -> pa.Table:
        """The chunk `key` as a table: read back when it is committed, made and committed when it is not.

        Raises:
            LeaseLost: A later attempt owns the cell.
        """
        return decode_table(self._chunk(key, "parquet", lambda: encode_table(make())))

    def scratch_chunk(self, key: str, suffix: str, make: Callable[[], bytes]) -> bytes:
        """The chunk `key` as a large file (tensors, say) that an artefact will hold in the end: gone with the commit.

        Read back when it is there and whole, made and committed when it is not.

        Raises:
            LeaseLost: A later attempt owns the cell.
        """
        return self._chunk(key, suffix, make, self.paths.scratch)

    def has_chunk(self, key: str) -> bool:
        """Whether the chunk is committed and whole."""
        return any(_intact(path) for path in self._candidates(key, self.paths.chunks))

    def table_artefact(self, name: str, table: pa.Table) -> None:
        """Hand on a table."""
        self._bytes_artefact(name, "parquet", encode_table(table))

    def json_artefact(self, name: str, value: Any) -> None:
        """Hand on JSON data."""
        self._bytes_artefact(name, "json", encode_json(value))

    def file_artefact(self, name: str, suffix: str, fill: Callable[[Path], object]) -> None:
        """Hand on a file, which `fill` writes into the path it is given: what is too large to be held as bytes."""
        staging = self.paths.artefacts / f"{TEMP_PREFIX}{name}-{uuid.uuid4().hex[:12]}"
        with storage_errors(staging):
            fill(staging)
        digest = sha256_path(staging)
        target = self.paths.artefacts / f"{name}-{digest[:HASH_LENGTH]}.{suffix}"
        with fenced(self.paths, self.attempt):
            publish_file(staging, target)
        self._note(name, target, digest)

    def directory_artefact(self, name: str, fill: Callable[[Path], None]) -> None:
        """Hand on a directory (an adapter, say), which `fill` writes into the path it is given."""
        staging = self.paths.artefacts / f"{TEMP_PREFIX}{name}-{uuid.uuid4().hex[:12]}"
        with storage_errors(staging):
            staging.mkdir()
            fill(staging)
        digest = sha256_path(staging)
        target = self.paths.artefacts / f"{name}-{digest[:HASH_LENGTH]}"
        with fenced(self.paths, self.attempt):
            if target.exists():  # of an earlier attempt; damaged, perhaps, so this one takes its place
                shutil.rmtree(target)
            publish_directory(staging, target)
        self._note(name, target, digest)

    def commit(
        self,
        metrics: Mapping[str, float | int | None],
        *,
        outcome: Outcome = "ok",
        reason: str | None = None,
        seconds: float = 0.0,
        provenance: Mapping[str, Any] | None = None,
    ) -> Record:
        """Finish the cell: write the record, after which nothing of it changes any more.

        Raises:
            LeaseLost: A later attempt owns the cell, or it is finished already.
        """
        record = Record(
            cell_id=self.paths.root.name,
            attempt=self.attempt,
            outcome=outcome,
            metrics=dict(metrics),
            artefacts=dict(self._artefacts),
            reason=reason,
            seconds=seconds,
            provenance=dict(provenance or {}),
        )
        with fenced(self.paths, self.attempt):
            self._refuse_if_finished()
            write_json(self.paths.record, record.to_json())
            self.paths.failure.unlink(missing_ok=True)
        discard_scratch(self.paths)
        return record

    def _refuse_if_finished(self) -> None:
        if read_record(self.paths) is not None:
            raise LeaseLost(f"cell {self.paths.root.name} is finished; its record stays as it is")

    def _chunk(self, key: str, suffix: str, make: Callable[[], bytes], directory: Path | None = None) -> bytes:
        directory = directory or self.paths.chunks
        for path in self._candidates(key, directory):
            if _intact(path):
                return path.read_bytes()
            with fenced(self.paths, self.attempt):
                path.unlink(missing_ok=True)
        with storage_errors(self.paths.log):  # where a worker's output goes; it shows what an interruption has cost
            print(f"chunk {key}", flush=True)
        data = make()
        name = f"{key}-{sha256_bytes(data)[:HASH_LENGTH]}.{suffix}"
        with fenced(self.paths, self.attempt):
            write_bytes(directory / name, data)
        return data

    def _candidates(self, key: str, directory: Path) -> list[Path]:
        return sorted(p for p in directory.iterdir() if p.name.rpartition("-")[0] == key)

    def _bytes_artefact(self, name: str, suffix: str, data: bytes) -> None:
        digest = sha256_bytes(data)
        target = self.paths.artefacts / f"{name}-{digest[:HASH_LENGTH]}.{suffix}"
        with fenced(self.paths, self.attempt):
            write_bytes(target, data)
        self._note(name, target, digest)

    def _note(self, name: str, path: Path, digest: str) -> None:
        relative = path.relative_to(self.paths.root).as_posix()
        self._artefacts[name] = Artefact(relative, digest, size_bytes(path))


@dataclass(frozen=True)
class Failure:
    """Why an attempt failed, for people; the cell stays open."""

    attempt: int
    kind: str
    """Class of the error."""
    message: str
    exit_code: int

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}"


def write_failure(paths: CellPaths, failure: Failure) -> None:
    """Note why an attempt failed.

    Raises:
        LeaseLost: A later attempt owns the cell.
    """
    with fenced(paths, failure.attempt):
        write_json(paths.failure, asdict(failure))


def read_failure(paths: CellPaths) -> Failure | None:
    """The last failure that was noted, or None. A damaged note is no note."""
    try:
        return Failure(**read_json(paths.failure)) if paths.failure.exists() else None
    except (IntegrityError, TypeError):
        return None


def discard_scratch(paths: CellPaths) -> None:
    """Remove the working files of a finished cell; its writer does so itself, unless it is killed at that moment."""
    shutil.rmtree(paths.scratch, ignore_errors=True)


def finished(paths: CellPaths) -> FinishedCell | None:
    """The finished cell, or None when its record is missing or not valid."""
    record = read_record(paths)
    return FinishedCell(record, paths) if record else None


def _intact(path: Path) -> bool:
    digest = path.stem.rpartition("-")[2]
    return sha256_path(path)[:HASH_LENGTH] == digest
