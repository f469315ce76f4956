"""How far the cells of a study are, and why one that is missing is."""

from __future__ import annotations

from dataclasses import dataclass

from nullarm.protocols.low_rank.tables import MEASURE
from nullarm.store.journal import Entry
from nullarm.store.study_store import StudyStore
from nullarm.study.plan import Cell


@dataclass(frozen=True)
class Progress:
    """A study's cells as the index has them at one moment.

    Attributes:
        store: The study directory.
        entries: Lines of the index, by cell id.
    """

    store: StudyStore
    entries: dict[str, Entry]

    @classmethod
    def of(cls, store: StudyStore) -> Progress:
        """As they are now."""
        return cls(store, {entry.id: entry for entry in store.journal.entries()})

    def is_done(self, cell: Cell) -> bool:
        """Whether it ended `ok`."""
        finished = self.store.finished(cell.id)
        return finished is not None and finished.record.outcome == "ok"

    def fault(self, cell: Cell) -> str | None:
        """Why a cell failed; None when it did not."""
        if finished := self.store.finished(cell.id):
            record = finished.record
            return None if record.outcome == "ok" else record.reason or record.outcome
        entry = self.entries.get(cell.id)
        return entry.message or entry.state if entry and entry.state == "failed" else None

    def why_missing(self, cell: Cell) -> str:
        """Why there is nothing of a cell: the failure of it or of the first cell that it rests on, or its turn."""
        needed = self.store.plan.closure([cell.id])
        for one in self.store.plan:
            if one.id in needed and (fault := self.fault(one)):
                return f"FAILED at {one.stage}: {fault}"
        entry = self.entries.get(cell.id)
        return "running" if entry and entry.state == "running" else "not run yet"

    def failures(self) -> dict[str, str]:
        """Every cell that failed, by its name, and why."""
        faults = ((cell, self.fault(cell)) for cell in self.store.plan)
        return {name_of(cell): fault for cell, fault in faults if fault}

    def unfinished(self) -> list[str]:
        """Names of the cells that are not done and did not fail themselves."""
        return [name_of(cell) for cell in self.store.plan if not self.is_done(cell) and not self.fault(cell)]


def name_of(cell: Cell) -> str:
    """Name for people, which tells the stages of an arm apart."""
    return f"{cell.label} · {cell.stage}" if cell.arm else cell.label


def arm_of(cell: Cell) -> str | None:
    """The arm that a cell belongs to: of a timing session that of its treatment; None for what serves all arms."""
    return str(cell.settings["arms"]["treatment"]) if cell.stage == MEASURE else cell.arm
