"""The source's output tree: for each run tag `configs/ logs/ results/ manifests/ progress/`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from nullarm.protocols.kv_communication.budget.arms import ArmResult
from nullarm.protocols.kv_communication.budget.evaluations import Evaluation
from nullarm.protocols.kv_communication.runbook.tags import run_directory, run_tag
from nullarm.protocols.kv_communication.tables import EVALUATE, ITEMS
from nullarm.store.atomic import make_directory, write_bytes
from nullarm.store.cell import Failure, read_failure
from nullarm.store.files import decode_table, encode_json
from nullarm.store.record import FinishedCell
from nullarm.store.study_store import StudyStore
from nullarm.study.plan import Cell

FOLDERS = ("configs", "logs", "results", "manifests", "progress")

Status = Literal["running", "prep_only", "complete", "failed"]


def write_run(store: StudyStore, directory: str) -> Path:
    """All files of one run, from what the store holds now.

    Args:
        store: The study directory.
        directory: Of the run, as `run_directory` names it.

    Returns:
        The run's directory.

    Raises:
        StorageError: The disk is full, read-only or gone.
    """
    cells = [cell for cell in store.plan if cell.stage == EVALUATE and run_directory(cell) == directory]
    root = store.paths.output / directory
    make_directory(*(root / folder for folder in FOLDERS))
    shared = len({(cell.arm, cell.seed) for cell in cells}) > 1
    for cell in cells:
        for name, content in _files(store, cell).items():
            folder, _, file = name.partition("/")
            path = root / folder / (f"{cell.arm}/seed_{cell.seed}" if shared else "") / file
            make_directory(path.parent)
            write_bytes(path, content)
    for name, value in _manifests(store, cells).items():
        write_bytes(root / "manifests" / name, encode_json(value))
    return root


def status_of(store: StudyStore, cell: Cell) -> Status:
    """How far a cell is: `prep_only` when nothing of it has begun."""
    if finished := store.finished(cell.id):
        return "complete" if finished.record.outcome == "ok" else "failed"
    paths = store.paths.cell(cell.id)
    if read_failure(paths):
        return "failed"
    return "running" if paths.lease.exists() else "prep_only"


def reason_of(store: StudyStore, cell: Cell) -> str | None:
    """Why a cell failed; None when it has not."""
    if finished := store.finished(cell.id):
        return finished.record.reason
    failure: Failure | None = read_failure(store.paths.cell(cell.id))
    return str(failure) if failure else None


def summary(store: StudyStore, cell: Cell) -> dict[str, Any]:
    """What one evaluation found, over all of its chunks; a failed one says so, and has no accuracy."""
    told = {
        "dataset": cell.slice,
        "arm": cell.arm,
        "seed": cell.seed,
        "status": status_of(store, cell),
        "reason": reason_of(store, cell),
        "accuracy": None,
    }
    finished = store.finished(cell.id)
    if finished is None or told["status"] != "complete":
        return told
    evaluation = Evaluation(cell, finished, store.paths.root)
    result = ArmResult(evaluation.dataset, (evaluation,))
    low, high = result.ends or (None, None)
    return told | {
        "accuracy": result.accuracy,
        "accuracy_low": low,
        "accuracy_high": high,
        "correct": round(float(evaluation.numbers("accuracy").sum())),
        "total": len(evaluation.items),
        "errors": len(evaluation.errors),
        "bytes_per_sequence": result.wire_bytes,
        "avg_input_length": evaluation.mean("input_tokens"),
        "chunks": len(list(_chunks(finished))),
        "seconds": dict(evaluation.seconds),
    }


def _files(store: StudyStore, cell: Cell) -> dict[str, bytes]:
    """By folder and name, all but the manifests."""
    paths, finished = store.paths.cell(cell.id), store.finished(cell.id)
    files = {
        f"configs/{cell.slice}.json": encode_json(
            {"cell": cell.id, "parameters": dict(cell.parameters), "settings": dict(cell.settings)}
        ),
        f"results/{cell.slice}_summary.json": encode_json(summary(store, cell)),
    }
    if paths.log.exists():
        files[f"logs/{cell.slice}.log"] = paths.log.read_bytes()
    if finished:
        lines = (json.dumps(chunk) + "\n" for chunk in _chunks(finished))
        files[f"progress/{cell.slice}_chunks.jsonl"] = "".join(lines).encode()
    return files


def _chunks(finished: FinishedCell) -> Iterator[dict[str, Any]]:
    """Each chunk of items in the order of the items, and when it was committed."""
    if ITEMS not in finished.record.artefacts:
        return
    items = finished.table(ITEMS)["item"].to_pylist()
    place = {item: index for index, item in enumerate(items)}
    found = []
    for path in finished.paths.chunks.glob("*.parquet"):
        table = decode_table(path.read_bytes())
        if "item" in table.column_names and len(table):
            start = place.get(table["item"][0].as_py())
            if start is not None:
                found.append((start, start + len(table), path.stat().st_mtime))
    for start, end, written in sorted(found):
        timestamp = datetime.fromtimestamp(written, UTC).isoformat(timespec="seconds")
        yield {"start": start, "end": end, "total": len(items), "timestamp": timestamp}


def _manifests(store: StudyStore, cells: Sequence[Cell]) -> dict[str, Any]:
    first = cells[0]
    models = {name: first.settings[name] for name in ("receiver", "sharers", "fusers")}
    states = {cell.label: status_of(store, cell) for cell in cells}
    records = [finished.record for cell in cells if (finished := store.finished(cell.id))]
    baseline = first.settings["milestone"] == 0
    return {
        "run_manifest.json": {
            "run_tag": run_tag(first),
            "study": store.lock.study.name,
            "status": _together(states.values()),
            "cells": states,
            "failures": {cell.label: reason for cell in cells if (reason := reason_of(store, cell))},
        },
        "env_info.json": dict(records[0].provenance) if records else {},
        "step_0_checkpoint_manifest.json" if baseline else "step_1_manifest.json": {
            **models,
            "inputs": dict(first.inputs),
            "arms": {str(cell.arm): {"channel": cell.settings["channel"], "codec": cell.settings["codec"]}
                     for cell in cells},
        },
    }  # fmt: skip


def _together(states: Iterable[Status]) -> Status:
    found = set(states)
    if "failed" in found:
        return "failed"
    return found.pop() if len(found) == 1 else "running"
