"""A capture in the source's JSON files, written record by record: never more than one record is in memory.

A missing number is null where the source writes null: in the fields that compare a layer with the one below. Everywhere
else its readers expect a number, so a capture that lacks one (models of different width have no cosine) is not written
in this form, and says why.
"""

from __future__ import annotations

import json
import re
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from nullarm.errors import FormatError, InvalidResult
from nullarm.protocols.residual.export.records import records_of
from nullarm.protocols.residual.export.schema import FORMAT_VERSION, Record, check_record
from nullarm.protocols.residual.tables import CAPTURE
from nullarm.store.atomic import TEMP_PREFIX, make_directory, publish_file, storage_errors
from nullarm.store.files import sha256_path
from nullarm.store.files import write_json as write_small_json
from nullarm.store.record import FinishedCell

NEEDED = ("entropy", "norm", "kl_div", "cosine", "norm_diff")
"""Metrics without which there is no record."""


def write_json(finished: FinishedCell, directory: Path) -> list[Path]:
    """Write a finished capture in the source's schema.

    Single pass: `residual_compare_<started>_<sft>.json`. Multi-pass: `multi_pass_<started>_<entry>.json`, and beside it
    `.meta.json` with what was run and how much there is. Records are one a line.

    Args:
        finished: The capture.
        directory: Where the files go; made when it is not there. A file of the same name is replaced once the new one
            is whole and on disk.

    Returns:
        The files, the one with the records first.

    Raises:
        InvalidResult: A metric that the schema needs could not be measured.
        IntegrityError: An artefact is not what its hash says.
        StorageError: The disk is full, read-only or gone; what was there is as it was.
    """
    capture = finished.json(CAPTURE)
    _require_metrics(finished, capture)
    make_directory(directory)
    path = directory / _file_name(capture)
    counts = _write_records(records_of(finished), path)
    if not capture["multi_pass"]:
        return [path]
    meta = path.with_suffix(".meta.json")
    write_small_json(meta, _meta(capture, path, counts))
    return [path, meta]


def announcement(path: Path) -> str:
    """The line by which the source's batch tool finds the file in a log."""
    return f"Wrote comparison JSON to: {path}"


def _file_name(capture: Record) -> str:
    if capture["multi_pass"]:
        return f"multi_pass_{capture['started']}_{_safe(capture['entry'])}.json"
    return f"residual_compare_{capture['started']}_{_safe(capture['sft'])}.json"


def _safe(name: str) -> str:
    """A model's or entry's name as part of a file name, by the source's rule; the end of a long one."""
    return re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_")[-100:] or "model"


def _require_metrics(finished: FinishedCell, capture: Record) -> None:
    for name in NEEDED:
        if reason := capture["refused"].get(name):
            raise InvalidResult(
                f"capture {finished.record.cell_id} has no {name}, without which there is no JSON: {reason}",
                next_command="set json_export: false; the tables hold what was measured",
            )


def _write_records(records: Iterable[Record], path: Path) -> Counter[str]:
    counts: Counter[str] = Counter()
    with _staged(path) as file:
        for record in records:
            file.write(",\n" if counts["records"] else "[\n")
            file.write(_line(record, path))
            counts.update(records=1, positions=_positions(record))
        file.write("\n]\n" if counts["records"] else "[]\n")
    return counts


def _line(record: Record, path: Path) -> str:
    try:
        check_record(record)
        return json.dumps(record, ensure_ascii=False, allow_nan=False)
    except (FormatError, ValueError) as error:
        raise InvalidResult(f"{path.name} cannot be written: {error}") from error


def _positions(record: Record) -> int:
    layers = record["runs"][0]["layers"] if "runs" in record else record["layers"]
    return max((len(positions) for positions in layers.values()), default=0)


@contextmanager
def _staged(path: Path) -> Iterator[TextIO]:
    """A file that takes the name `path` when the block ends well, and is gone when it does not."""
    staging = path.with_name(f"{TEMP_PREFIX}{path.name[:80]}-{uuid.uuid4().hex[:12]}")
    with storage_errors(path):
        try:
            with open(staging, "w", encoding="utf-8") as file:
                yield file
            publish_file(staging, path)
        finally:
            staging.unlink(missing_ok=True)


def _meta(capture: Record, path: Path, counts: Counter[str]) -> dict[str, Any]:
    named = ("entry", "started", "runs", "comparisons", "lens", "dtype", "top_k")
    return {
        "format_version": FORMAT_VERSION,
        "file": path.name,
        "sha256": sha256_path(path),
        **{name: capture[name] for name in named},
        "models": {"base": capture["base"], "sft": capture["sft"]},
        "counts": {
            "records": counts["records"],
            "positions": counts["positions"],
            "layers": capture["layers"],
            "runs": len(capture["runs"]),
            "pairwise": len(capture["comparisons"]),
        },
    }
