"""The source's output tree: for each run tag `configs/ logs/ results/ manifests/ progress/`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nullarm.protocols.kv_communication.budget.arms import ArmResult
from nullarm.protocols.kv_communication.budget.evaluations import Evaluation
from nullarm.protocols.kv_communication.budget.tags import run_directory, run_tag
from nullarm.protocols.kv_communication.runbook.state import state_of, together
from nullarm.protocols.kv_communication.tables import EVALUATE, ITEMS
from nullarm.store.atomic import make_directory, write_bytes
from nullarm.store.files import decode_table, encode_json
from nullarm.store.record import FinishedCell
from nullarm.store.study_store import StudyStore
from nullarm.study.plan import Cell

FOLDERS = ("configs", "logs", "results", "manifests", "progress")


def write_evaluation(store: StudyStore, cell: Cell) -> Path:
    """The files of one evaluation, and the manifests of the run that it belongs to.

    Returns:
        The run's directory.

    Raises:
        StorageError: The disk is full, read-only or gone.
    """
    return _write(store, run_directory(cell), [cell])


def write_tree(store: StudyStore) -> list[Path]:
    """Every run of the plan, also those that have not begun; their directories.

    Raises:
        StorageError: The disk is full, read-only or gone.
    """
    runs: dict[str, list[Cell]] = {}
    for cell in store.plan:
        if cell.stage == EVALUATE:
            runs.setdefault(run_directory(cell), []).append(cell)
    return [_write(store, directory, cells) for directory, cells in runs.items()]


def _write(store: StudyStore, directory: str, cells: Sequence[Cell]) -> Path:
    """Files of `cells`, and the manifests over all cells of their run."""
    run = [cell for cell in store.plan if cell.stage == EVALUATE and run_directory(cell) == directory]
    root = store.paths.output / directory
    make_directory(*(root / folder for folder in FOLDERS))
    shared = len({(cell.arm, cell.seed) for cell in run}) > 1
    for cell in cells:
        for name, content in _files(store, cell).items():
            folder, _, file = name.partition("/")
            path = root / folder / (f"{cell.arm}/seed_{cell.seed}" if shared else "") / file
            make_directory(path.parent)
            write_bytes(path, content)
    for name, value in _manifests(store, run).items():
        write_bytes(root / "manifests" / name, encode_json(value))
    return root


def summary(store: StudyStore, cell: Cell) -> dict[str, Any]:
    """What one evaluation found, over all of its chunks; a failed one says so, and has no accuracy."""
    status, reason = state_of(store, cell)
    told = {
        "dataset": cell.slice,
        "arm": cell.arm,
        "seed": cell.seed,
        "status": status,
        "reason": reason,
        "accuracy": None,
    }
    finished = store.finished(cell.id)
    if finished is None or status != "complete":
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
        "chunks": len(_chunks(finished)),
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


def _chunks(finished: FinishedCell) -> list[dict[str, Any]]:
    """Each chunk that the items were put together from, in their order, and when it was committed.

    An attempt with another `chunk_size` may have left chunks that overlap these: of several ways through all items that
    of the last written chunks is taken.
    """
    if ITEMS not in finished.record.artefacts:
        return []
    items = finished.table(ITEMS)["item"].to_pylist()
    place = {item: index for index, item in enumerate(items)}
    found = [chunk for path in finished.paths.chunks.glob("*.parquet") if (chunk := _chunk(path, place))]
    rest: dict[int, list[dict[str, Any]]] = {len(items): []}
    for start, end, written in sorted(found, key=lambda chunk: (-chunk[0], chunk[2])):
        if end in rest:
            timestamp = datetime.fromtimestamp(written, UTC).isoformat(timespec="seconds")
            line = {"start": start, "end": end, "total": len(items), "timestamp": timestamp}
            rest[start] = [line, *rest[end]]
    return rest.get(0, [])


def _chunk(path: Path, place: Mapping[str, int]) -> tuple[int, int, float] | None:
    """Where among the items it starts and ends, and when it was written; None for what is no chunk of these."""
    table = decode_table(path.read_bytes())
    first = table["item"][0].as_py() if "item" in table.column_names and len(table) else None
    start = place.get(str(first))
    return None if start is None else (start, start + len(table), path.stat().st_mtime)


def _manifests(store: StudyStore, cells: Sequence[Cell]) -> dict[str, Any]:
    first = cells[0]
    models = {name: first.settings[name] for name in ("receiver", "sharers", "fusers")}
    states = {cell.label: state_of(store, cell) for cell in cells}
    records = [finished.record for cell in cells if (finished := store.finished(cell.id))]
    baseline = first.settings["milestone"] == 0
    return {
        "run_manifest.json": {
            "run_tag": run_tag(first),
            "study": store.lock.study.name,
            "status": together(status for status, _ in states.values()),
            "cells": {label: status for label, (status, _) in states.items()},
            "failures": {label: reason for label, (_, reason) in states.items() if reason},
        },
        "env_info.json": dict(records[0].provenance) if records else {},
        "step_0_checkpoint_manifest.json" if baseline else "step_1_manifest.json": {
            **models,
            "inputs": dict(first.inputs),
            "arms": {str(cell.arm): {"channel": cell.settings["channel"], "codec": cell.settings["codec"]}
                     for cell in cells},
        },
    }  # fmt: skip
