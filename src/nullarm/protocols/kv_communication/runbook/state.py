"""How far a cell is, and a run of several, in the words of the source's manifests."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Literal

from nullarm.errors import IntegrityError
from nullarm.store.cell import read_failure
from nullarm.store.lease import BEAT_TIMEOUT_S, Lease, read_lease
from nullarm.store.paths import CellPaths
from nullarm.store.study_store import StudyStore
from nullarm.study.plan import Cell

Status = Literal["prep_only", "running", "incomplete", "complete", "failed"]
"""The source's words, and `incomplete`: begun, not finished, and nobody is at work on it."""


def state_of(store: StudyStore, cell: Cell) -> tuple[Status, str | None]:
    """How far a cell is, and why it failed; a lease whose owner is gone holds nothing."""
    if finished := store.finished(cell.id):
        return ("complete" if finished.record.outcome == "ok" else "failed"), finished.record.reason
    paths = store.paths.cell(cell.id)
    try:
        lease = read_lease(paths)
    except IntegrityError as error:
        return "failed", str(error)
    failure = read_failure(paths)
    if lease is None:
        return "prep_only", None
    if failure and failure.attempt == lease.attempt:
        return "failed", str(failure)
    return ("running" if _is_held(lease, paths) else "incomplete"), None


def together(states: Iterable[Status]) -> Status:
    """Of several cells: a failure says more than anything, and then that somebody is at work."""
    found = set(states)
    for word in ("failed", "running"):
        if word in found:
            return word
    return found.pop() if len(found) == 1 else "incomplete"


def _is_held(lease: Lease, paths: CellPaths) -> bool:
    """Whether its owner is at work, as far as can be told; on another machine, whether it was heard of lately."""
    if lease.released:
        return False
    alive = lease.owner.alive()
    return time.time() - paths.lease.stat().st_mtime < BEAT_TIMEOUT_S if alive is None else alive
