"""Which captures a report shows: one per arm, a treatment never without its control, and no more than a page bears."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nullarm.protocols.residual.planning import CAPTURE
from nullarm.protocols.residual.report.captured import Captured
from nullarm.store.record import FinishedCell
from nullarm.store.study_store import StudyStore
from nullarm.study.plan import Cell
from nullarm.study.spec import Study

DETAILED = 8
"""Arms that are drawn; the others are rows of tables."""


@dataclass(frozen=True, eq=False)
class Entry:
    """A finished capture.

    Attributes:
        cell: What was asked.
        captured: What was found.
        control: Whether its arm is a control.
    """

    cell: Cell
    captured: Captured
    control: bool

    @property
    def arm(self) -> str:
        """Name of its arm."""
        return str(self.cell.arm)

    @property
    def name(self) -> str:
        """Name for people."""
        return f"{self.arm} (control)" if self.control else self.arm

    @property
    def row_head(self) -> tuple[str, int, int | None]:
        """Entry, seed and replicate: what a table of all captures begins with."""
        return self.name, self.cell.seed, self.cell.replicate

    @property
    def finished(self) -> FinishedCell:
        """Record and artefacts."""
        return self.captured.finished

    @property
    def cells(self) -> tuple[str, ...]:
        """What everything shown of it rests on."""
        return (self.cell.id,)

    @property
    def usable(self) -> bool:
        """Whether the instrument check held."""
        return self.finished.record.outcome == "ok"


Group = tuple[Entry, ...]
"""A treatment and its controls, or a single entry."""


def captures(store: StudyStore) -> list[Entry]:
    """Every finished capture, in plan order."""
    arms = store.lock.study.arms
    return [
        Entry(cell, Captured(done), arms[str(cell.arm)].role == "control")
        for cell in store.plan
        if cell.stage == CAPTURE and (done := store.finished(cell.id))
    ]


def groups(study: Study, entries: Sequence[Entry]) -> list[Group]:
    """The first usable capture of each arm, each treatment with the controls that the contrasts declare.

    The primary contrast comes first, then the others, then arms that no contrast names. A control may be in several
    groups.
    """
    first: dict[str, Entry] = {}
    for entry in entries:
        if entry.usable:
            first.setdefault(entry.arm, entry)
    declared: dict[str, list[str]] = {}
    for contrast in sorted(study.analysis.contrasts, key=lambda c: not c.primary):
        declared.setdefault(contrast.treatment, []).append(contrast.control)
    found = [
        (first[arm], *(first[control] for control in dict.fromkeys(controls) if control in first))
        for arm, controls in declared.items()
        if arm in first
    ]
    named = {entry.arm for group in found for entry in group}
    return [*found, *((entry,) for arm, entry in first.items() if arm not in named)]


def detailed(found: Sequence[Group], most: int = DETAILED) -> list[Group]:
    """Leading groups with at most `most` different entries together; the first one always."""
    kept: list[Group] = []
    for group in found:
        if kept and len(members([*kept, group])) > most:
            break
        kept.append(group)
    return kept


def members(found: Sequence[Group]) -> list[Entry]:
    """Every entry of some groups once."""
    return list({entry.cell.id: entry for group in found for entry in group}.values())


def alone(study: Study, found: Sequence[Group]) -> list[str]:
    """Treatments of a declared contrast that stand without a finished control."""
    treated = {contrast.treatment for contrast in study.analysis.contrasts}
    return [group[0].arm for group in found if len(group) == 1 and group[0].arm in treated]
