"""Per arm, under `arms/ARM/`: `log.txt`, what its cells printed, and `metrics.json`, what they measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nullarm.protocols.low_rank.runbook.files import write_data, write_text
from nullarm.protocols.low_rank.runbook.progress import Progress, arm_of, name_of
from nullarm.store.study_store import StudyStore
from nullarm.study.plan import Cell

ARMS = "arms"
"""The directory: an arm may have any name, also that of a file."""


def write_arm(store: StudyStore, arm: str) -> list[Path]:
    """The files of one arm; a timing session is its treatment's.

    Raises:
        StorageError: The disk is full, read-only or gone.
    """
    progress = Progress.of(store)
    cells = [cell for cell in store.plan if arm_of(cell) == arm]
    directory = store.paths.output / ARMS / arm
    return [
        write_text(directory / "log.txt", "\n".join(_log(progress, cell) for cell in cells)),
        write_data(directory / "metrics.json", {"arm": arm, "cells": [_metrics(progress, cell) for cell in cells]}),
    ]


def _log(progress: Progress, cell: Cell) -> str:
    path = progress.store.paths.cell(cell.id).log
    status = "done" if progress.is_done(cell) else progress.why_missing(cell)
    printed = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    return f"== {name_of(cell)} ({cell.id}): {status}\n{printed}"


def _metrics(progress: Progress, cell: Cell) -> dict[str, Any]:
    done = progress.is_done(cell)
    finished = progress.store.finished(cell.id)
    return {
        "cell": cell.id,
        "name": name_of(cell),
        "stage": cell.stage,
        "seed": cell.seed,
        "replicate": cell.replicate,
        "contrast": cell.slice,
        "status": "done" if done else progress.why_missing(cell),
        "seconds": finished.record.seconds if finished else None,
        "metrics": dict(finished.record.metrics) if finished and done else None,
    }
