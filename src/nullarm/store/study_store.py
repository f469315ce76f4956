"""One study directory: its lock file, its cells, and the index over them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from nullarm.errors import ForeignStudyError, FormatError, IntegrityError, StudyError
from nullarm.store.atomic import make_directory, write_bytes
from nullarm.store.cell import finished, read_failure
from nullarm.store.files import read_json, write_json
from nullarm.store.journal import Change, Journal
from nullarm.store.lease import Lease, Leases, read_lease
from nullarm.store.paths import StudyPaths
from nullarm.store.record import FinishedCell
from nullarm.study.identity import content_hash
from nullarm.study.plan import Cell, Plan
from nullarm.study.spec import FORMAT, Study


@dataclass(frozen=True)
class Lock:
    """The resolved study as it was laid down, and the analysis that was declared before the first cell."""

    study: Study
    declared_analysis: Mapping[str, Any] | None
    """The analysis in force when the first cell was claimed; None while none has been."""

    @property
    def exploratory(self) -> bool:
        """Whether the analysis was changed after cells had run."""
        declared = self.declared_analysis
        return declared is not None and content_hash(declared) != analysis_hash(self.study)


class StudyStore:
    """A study directory. `create` lays one down or goes on with it; `open` reads one."""

    def __init__(self, root: Path) -> None:
        self.paths = StudyPaths(root)
        self.journal = Journal(self.paths.journal)

    @classmethod
    def create(cls, root: Path, study: Study, plan: Plan) -> StudyStore:
        """Lay down a study directory, or go on with the one that is there.

        Raises:
            ForeignStudyError: The directory holds another study, or something else.
            FormatError: A newer nullarm wrote it.
            StorageError: The disk is full, read-only or gone.
        """
        paths = StudyPaths(root)
        known = read_lock(root) if paths.lock.exists() else None
        _refuse_foreign(root, study, known)
        make_directory(paths.cells)
        write_json(paths.plan, [cell.to_json() for cell in plan])
        _write_lock(paths, Lock(study, known.declared_analysis if known else None))
        store = cls(root)
        store.rebuild()
        return store

    @classmethod
    def open(cls, root: Path) -> StudyStore:
        """Open a study directory.

        Raises:
            StudyError: There is none.
            FormatError: A newer nullarm wrote it.
        """
        read_lock(root)
        store = cls(root)
        if store.journal.entries():
            store.reconcile()
        else:
            store.rebuild()
        return store

    @property
    def lock(self) -> Lock:
        """The lock file."""
        return read_lock(self.paths.root)

    @cached_property
    def plan(self) -> Plan:
        """The planned cells."""
        return Plan(tuple(Cell.from_json(data) for data in read_json(self.paths.plan)))

    def declare_analysis(self) -> None:
        """Fix the analysis as the declared one, before the first cell runs; of no effect once it is fixed."""
        lock = self.lock
        if lock.declared_analysis is None:
            _write_lock(self.paths, Lock(lock.study, lock.study.analysis.model_dump(mode="json")))

    def claim(self, cell: Cell, leases: Leases) -> Lease | None:
        """Take a cell for its next attempt, or return None while somebody else holds it."""
        paths = self.paths.cell(cell.id)
        if not paths.cell.exists():
            make_directory(paths.root)
            write_json(paths.cell, cell.to_json())
        lease = leases.claim(paths)
        if lease is not None:
            self.journal.update([Change(cell.id, "running", lease.attempt)])
        return lease

    def finished(self, cell_id: str) -> FinishedCell | None:
        """The finished cell, or None."""
        return finished(self.paths.cell(cell_id))

    def reconcile(self) -> None:
        """Bring the index up to what the cells say, for every cell that was begun and that it does not hold as done."""
        begun = {path.name for path in self.paths.cells.iterdir()}
        open_cells = [entry.id for entry in self.journal.entries() if entry.state != "done" and entry.id in begun]
        self.journal.update([self._look(cell_id) for cell_id in open_cells])

    def observe(self, cell_id: str) -> FinishedCell | None:
        """Look at one cell, note its state in the index, and return it when it is finished."""
        self.journal.update([self._look(cell_id)])
        return self.finished(cell_id)

    def rebuild(self) -> None:
        """Fill the index from the plan and the cell directories."""
        self.journal.fill((cell.id, cell.label) for cell in self.plan)
        self.reconcile()

    def _look(self, cell_id: str) -> Change:
        paths = self.paths.cell(cell_id)
        lease = read_lease(paths)
        attempt = lease.attempt if lease else 0
        if done := finished(paths):
            record = done.record
            return Change(cell_id, "done", attempt, record.outcome, record.seconds, record.reason)
        if lease and not lease.released and lease.owner.alive() is not False:
            return Change(cell_id, "running", attempt)
        if failure := read_failure(paths):
            return Change(cell_id, "failed", attempt, message=f"{failure['kind']}: {failure['message']}")
        return Change(cell_id, "pending", attempt)


def analysis_hash(study: Study) -> str:
    """Hash of the declared analysis."""
    return content_hash(study.analysis.model_dump(mode="json"))


def read_lock(root: Path) -> Lock:
    """Read the lock file of a study directory.

    Raises:
        StudyError: The directory is no study directory.
        FormatError: A newer nullarm wrote it.
        IntegrityError: The file is damaged.
    """
    path = StudyPaths(root).lock
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise StudyError(
            f"{root} is not a study directory (no {path.name})", next_command="`nullarm run STUDY.yaml` makes one"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise IntegrityError(f"{path} is damaged") from error
    if not isinstance(data, dict) or not isinstance(data.get("format"), int):
        raise IntegrityError(f"{path} is damaged: it has no format number")
    if data["format"] > FORMAT:
        raise FormatError(
            f"{path}: study directory format {data['format']} is newer than this nullarm reads",
            valid=f"up to {FORMAT}",
            next_command="pip install --upgrade nullarm",
        )
    return Lock(Study.model_validate(data["study"]), data["declared_analysis"])


def _write_lock(paths: StudyPaths, lock: Lock) -> None:
    data = {
        "format": FORMAT,
        "study": lock.study.model_dump(mode="json"),
        "analysis_hash": analysis_hash(lock.study),
        "declared_analysis": lock.declared_analysis,
    }
    write_bytes(paths.lock, yaml.safe_dump(data, sort_keys=False, allow_unicode=True).encode())


def _refuse_foreign(root: Path, study: Study, known: Lock | None) -> None:
    if known is None:
        if root.exists() and (not root.is_dir() or any(root.iterdir())):
            raise ForeignStudyError(
                f"{root} is not empty and holds no study", next_command="choose another directory with `--dir`"
            )
        return
    mine, theirs = (
        (study.name, study.protocol, study.smoke),
        (known.study.name, known.study.protocol, known.study.smoke),
    )
    if mine != theirs:
        raise ForeignStudyError(
            f"{root} holds another study",
            value=f"{theirs[0]} ({theirs[1]}{', smoke' if theirs[2] else ''})",
            valid=f"{mine[0]} ({mine[1]}{', smoke' if mine[2] else ''})",
            next_command="choose another directory with `--dir`",
        )
