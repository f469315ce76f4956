"""Small rehearsal studies, and study directories in the states that tests need."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from nullarm.conduct import prepare
from nullarm.store.cell import CellWriter
from nullarm.store.lease import Leases
from nullarm.store.record import Record
from nullarm.store.study_store import StudyStore
from nullarm.study.plan import Cell
from nullarm.study.spec import Study

_DATA: dict[str, Any] = {
    "name": "little",
    "question": "Is an effect of 0.2 found?",
    "protocol": "rehearsal",
    "parameters": {"items": 4, "chunks": 2, "effects": {"treated": 0.2}},
    "factors": {
        "arm": {
            "treated": {"role": "treatment"},
            "sham": {"role": "control", "null": "the treatment changes nothing", "replicates": 1},
        }
    },
    "seeds": [0, 1],
    "analysis": {
        "metric": "score",
        "margin": 0.05,
        "resamples": 200,
        "contrasts": [{"name": "effect", "treatment": "treated", "control": "sham", "primary": True}],
    },
}


def study_data(changes: dict[str, Any] | None = None) -> dict[str, Any]:
    """The little rehearsal as plain data, with dotted changes.

    It has 2 seeds × (prepare, treated, sham), and 2 chunks of 2 items.
    """
    data = deepcopy(_DATA)
    for dotted, value in (changes or {}).items():
        *path, last = dotted.split(".")
        holder = data
        for key in path:
            holder = holder.setdefault(key, {})
        holder[last] = value
    return data


def study(changes: dict[str, Any] | None = None) -> Study:
    """The little rehearsal, with dotted changes."""
    return Study.model_validate(study_data(changes))


def write_study(path: Path, changes: dict[str, Any] | None = None) -> Path:
    """The little rehearsal as a file."""
    path.write_text(yaml.safe_dump(study_data(changes), sort_keys=False), encoding="utf-8")
    return path


def laid_down(root: Path, changes: dict[str, Any] | None = None) -> StudyStore:
    """The study directory of the little rehearsal, with no cell begun."""
    asked = study(changes)
    return StudyStore.create(root, asked, prepare(asked).plan)


def writer_of(store: StudyStore, cell: Cell) -> CellWriter:
    """Claim a cell for its next attempt and open it for writing."""
    lease = store.claim(cell, Leases())
    assert lease is not None, "somebody holds the cell"
    return CellWriter(store.paths.cell(cell.id), lease.attempt)


def finish(store: StudyStore, cell: Cell, score: float = 1.0) -> Record:
    """Finish a cell that measured two items."""
    writer = writer_of(store, cell)
    writer.table_artefact("items", pa.table({"item": ["a", "b"], "score": [score, score + 1.0]}))
    return writer.commit({"score": score})
