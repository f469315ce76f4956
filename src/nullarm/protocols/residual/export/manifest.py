"""`manifest.csv` of a batch over pairs of models: one line per planned capture, one schema, every field quoted."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from nullarm.protocols.residual.planning import CAPTURE as STAGE
from nullarm.protocols.residual.tables import CAPTURE
from nullarm.store.atomic import make_directory, write_bytes
from nullarm.store.cell import read_failure
from nullarm.store.files import sha256_path
from nullarm.store.journal import Entry
from nullarm.store.record import FinishedCell
from nullarm.store.study_store import StudyStore
from nullarm.study.plan import Cell

COLUMNS = (
    "timestamp", "entry", "seed", "replicate", "status", "reason", "prompt_count", "prompt_variants", "multi_pass",
    "json_path", "log_path", "sha256",
)  # fmt: skip
"""`timestamp`: when the capture began, or when it failed (UTC). `entry`: the arm, as `--entries` takes it;
`replicate` is empty where there is none. `status`: `success`; `missing-json`, the file is not
there; `failed`; `download-failed`, when a model of the hub could not be had; `pending`, not at its end yet. Paths are
relative to the study directory. `sha256` is the JSON file's."""


def write_manifest(store: StudyStore, files: Mapping[str, Path]) -> Path:
    """Write `output/manifest.csv` for all captures of the plan.

    Args:
        store: The study directory.
        files: The JSON file of each capture that has one, by cell id.

    Returns:
        The file.

    Raises:
        IntegrityError: An artefact is not what its hash says.
        StorageError: The disk is full, read-only or gone; what was there is as it was.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writeheader()
    cells = [cell for cell in store.plan if cell.stage == STAGE]
    entries = {entry.id: entry for entry in store.journal.entries()}
    for cell in cells:
        writer.writerow({**_asked(store, cell), **_found(store, cell, entries[cell.id], files.get(cell.id))})
    path = store.paths.output / "manifest.csv"
    make_directory(path.parent)
    write_bytes(path, text.getvalue().encode())
    return path


def _asked(store: StudyStore, cell: Cell) -> dict[str, str]:
    log = store.paths.cell(cell.id).log
    return {
        "entry": str(cell.arm),
        "seed": str(cell.seed),
        "replicate": "" if cell.replicate is None else str(cell.replicate),
        "prompt_count": str(len(cell.settings["prompts"])),
        "prompt_variants": ";".join(cell.parameters["prompt_variants"]),
        "multi_pass": str(cell.parameters["multi_pass"]["enabled"]).lower(),
        "log_path": _relative(log, store) if log.exists() else "",
    }


def _found(store: StudyStore, cell: Cell, entry: Entry, file: Path | None) -> dict[str, str]:
    finished = store.finished(cell.id)
    return _open(store, cell, entry) if finished is None else _ended(store, finished, file)


def _ended(store: StudyStore, finished: FinishedCell, file: Path | None) -> dict[str, str]:
    began = datetime.strptime(finished.json(CAPTURE)["started"], "%Y%m%d_%H%M%S").replace(tzinfo=UTC)
    there = file is not None and file.is_file()
    status, reason = "success", finished.record.reason or ""
    if finished.record.outcome != "ok":
        status = "failed"
    elif not there:
        status, reason = "missing-json", f"{_relative(file, store)} is not there" if file else "no JSON was written"
    return {
        "timestamp": _time(began),
        "status": status,
        "reason": reason,
        "json_path": _relative(file, store) if file and there else "",
        "sha256": sha256_path(file) if file and there else "",
    }


def _open(store: StudyStore, cell: Cell, entry: Entry) -> dict[str, str]:
    if entry.state != "failed":
        return {"status": "pending", "reason": entry.message or ("running" if entry.state == "running" else "")}
    failure = read_failure(store.paths.cell(cell.id))
    hub = any(content.startswith("hub:") for content in cell.inputs.values())
    status = "download-failed" if hub and failure and failure.kind == "ModelError" else "failed"
    when = datetime.fromtimestamp(entry.updated, UTC)
    return {"timestamp": _time(when), "status": status, "reason": entry.message or ""}


def _time(when: datetime) -> str:
    return when.strftime("%Y-%m-%dT%H:%M:%S")


def _relative(path: Path, store: StudyStore) -> str:
    """Relative to the study directory when it is inside."""
    root = store.paths.root.resolve()
    found = path.resolve()
    return str(found.relative_to(root) if found.is_relative_to(root) else found)
