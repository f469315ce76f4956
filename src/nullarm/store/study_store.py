"""One study directory: its lock file, its cells, and the index over them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import yaml

from nullarm.errors import ForeignStudyError, FormatError, IntegrityError, StorageError, StudyError
from nullarm.store.atomic import TEMP_PREFIX, make_directory, storage_errors, write_bytes
from nullarm.store.cell import finished, read_failure
from nullarm.store.files import encode_json, read_json, write_json
from nullarm.store.journal import Change, Entry, Journal
from nullarm.store.lease import Lease, Leases, cell_lock, read_lease
from nullarm.store.paths import CellPaths, StudyPaths
from nullarm.store.record import FinishedCell
from nullarm.study.identity import content_hash
from nullarm.study.plan import Cell, Plan
from nullarm.study.spec import FORMAT, Analysis, Study
from nullarm.study.validate import validated


@dataclass(frozen=True)
class Lock:
    """The resolved study as it was laid down, and the analysis that was declared before the first cell."""

    study: Study
    plan_hash: str
    declared_analysis: Analysis | None = None
    """The analysis in force when the first cell was claimed; None while none has been."""

    @property
    def exploratory(self) -> bool:
        """Whether the analysis was changed after cells had run."""
        return self.declared_analysis not in (None, self.study.analysis)


class StudyStore:
    """A study directory. `create` lays one down or goes on with it; `open` reads one."""

    def __init__(self, root: Path, journal: Journal) -> None:
        self.paths = StudyPaths(root)
        self.journal = journal
        self._finished: dict[str, tuple[tuple[int, int], FinishedCell]] = {}

    def __enter__(self) -> StudyStore:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the index."""
        self.journal.close()

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
        _write_lock(paths, Lock(study, plan.hash, known.declared_analysis if known else None))
        store = cls(root, Journal(paths.journal))
        store.rebuild()
        return store

    @classmethod
    def open(cls, root: Path) -> StudyStore:
        """Open a study directory, also one on a disk that is full or read-only: the index is then kept in memory.

        Raises:
            StudyError: There is none.
            FormatError: A newer nullarm wrote it.
            IntegrityError: The lock file or the plan is damaged.
        """
        read_lock(root)
        try:
            store = cls(root, Journal(StudyPaths(root).journal))
            store.rebuild() if store.journal.is_empty() else store.reconcile()
        except StorageError:
            store = cls(root, Journal(None))
            store.rebuild()
        return store

    @property
    def lock(self) -> Lock:
        """The lock file."""
        return read_lock(self.paths.root)

    @cached_property
    def plan(self) -> Plan:
        """The planned cells.

        Raises:
            IntegrityError: The file is not the plan that the lock file names.
        """
        try:
            plan = Plan(tuple(Cell.from_json(data) for data in read_json(self.paths.plan)))
        except (OSError, IntegrityError, KeyError, TypeError, ValueError):
            plan = Plan(())
        if plan.hash != self.lock.plan_hash:
            raise IntegrityError(
                f"{self.paths.plan} is damaged or of another plan than {self.paths.lock.name}",
                next_command=f"lay the study down again: nullarm run STUDY.yaml --dir {self.paths.root}",
            )
        return plan

    def declare_analysis(self) -> None:
        """Fix the analysis as the declared one, before the first cell runs; of no effect once it is fixed."""
        lock = self.lock
        if lock.declared_analysis is None:
            _write_lock(self.paths, replace(lock, declared_analysis=lock.study.analysis))

    def claim(self, cell: Cell, leases: Leases) -> Lease | None:
        """Take a cell for its next attempt, or return None while somebody else holds it.

        Raises:
            IntegrityError: The cell's lease is damaged.
        """
        paths = self.paths.cell(cell.id)
        make_directory(paths.root)
        with cell_lock(paths):
            _lay_down(paths, cell)
        lease = leases.claim(paths)
        if lease is not None:
            self.journal.update([Change(cell.id, "running", lease.attempt)])
        return lease

    def finished(self, cell_id: str) -> FinishedCell | None:
        """The finished cell, or None."""
        paths = self.paths.cell(cell_id)
        try:
            status = paths.record.stat()
        except OSError:
            return None
        stamp = (status.st_mtime_ns, status.st_size)
        known = self._finished.get(cell_id)
        if known is not None and known[0] == stamp:
            return known[1]
        found = finished(paths)
        if found is not None:
            self._finished[cell_id] = (stamp, found)
        return found

    def verify(self) -> dict[str, str]:
        """Check every artefact of every finished cell against its hash; a cell that fails is open again.

        Returns:
            What was wrong, by cell id.
        """
        damaged: dict[str, str] = {}
        for cell in self.plan:
            if not (done := self.finished(cell.id)):
                continue
            try:
                for name in done.record.artefacts:
                    done.artefact(name)
            except IntegrityError as error:
                damaged[cell.id] = error.problem
                self.paths.cell(cell.id).record.unlink()
        for cell_id in damaged:
            self.observe(cell_id)
        return damaged

    def reconcile(self) -> None:
        """Bring the index up to what the cells say.

        A cell that it holds as done is only looked at again when its record is gone, so that this is quick.
        """
        cells = self.paths.cells
        # Some ways of copying leave out a directory that is empty.
        on_disk = {path.name for path in cells.iterdir()} if cells.is_dir() else set()
        begun = [e for e in self.journal.entries() if e.id in on_disk or e.state in ("running", "done", "failed")]
        self.journal.update([self._look(entry.id) for entry in begun if not self._stands(entry)])

    def observe(self, cell_id: str) -> FinishedCell | None:
        """Look at one cell, note its state in the index, and return it when it is finished."""
        self.journal.update([self._look(cell_id)])
        return self.finished(cell_id)

    def rebuild(self) -> None:
        """Fill the index from the plan and the cell directories.

        What runs have cost is known to the index alone; when that is lost, the time of the finished cells stands in.
        """
        self.journal.fill((cell.id, cell.label) for cell in self.plan)
        self.reconcile()
        known, _ = self.journal.spent()
        seconds = sum(entry.seconds or 0.0 for entry in self.journal.entries())
        if seconds and not known:
            self.journal.spend(0.0, seconds, self.lock.study.budget.price_per_hour)

    def _stands(self, entry: Entry) -> bool:
        return entry.state == "done" and self.paths.has_record(entry.id)

    def _look(self, cell_id: str) -> Change:
        if done := self.finished(cell_id):
            record = done.record
            return Change(cell_id, "done", record.attempt, record.outcome, record.seconds, record.reason)
        paths = self.paths.cell(cell_id)
        try:
            lease = read_lease(paths)
        except IntegrityError as error:
            return Change(cell_id, "failed", message=str(error))
        attempt = lease.attempt if lease else 0
        if lease and not lease.released and lease.owner.alive() is not False:
            return Change(cell_id, "running", attempt)
        failure = read_failure(paths)
        if failure and failure.attempt == attempt:
            return Change(cell_id, "failed", attempt, message=str(failure))
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
    try:
        declared = data["declared_analysis"]
        return Lock(
            study=validated(Study, data["study"], path.name),
            plan_hash=str(data["plan_hash"]),
            declared_analysis=None if declared is None else validated(Analysis, declared, path.name),
        )
    except StudyError as error:
        raise IntegrityError(f"{path} is damaged: {error.problem}", value=error.value) from error
    except KeyError as error:
        raise IntegrityError(f"{path} is damaged: it has no {error}") from error


def _write_lock(paths: StudyPaths, lock: Lock) -> None:
    declared = lock.declared_analysis
    data = {
        "format": FORMAT,
        "study": lock.study.model_dump(mode="json"),
        "plan_hash": lock.plan_hash,
        "analysis_hash": analysis_hash(lock.study),
        "declared_analysis": None if declared is None else declared.model_dump(mode="json"),
    }
    write_bytes(paths.lock, yaml.safe_dump(data, sort_keys=False, allow_unicode=True).encode())


def _lay_down(paths: CellPaths, cell: Cell) -> None:
    """Write what the cell is, unless that is what is there: settings may change from run to run.

    The lease that is written next makes the names durable.
    """
    with storage_errors(paths.root):
        for directory in (paths.chunks, paths.artefacts, paths.scratch):
            directory.mkdir(exist_ok=True)
    data = encode_json(cell.to_json())
    if not paths.cell.exists() or paths.cell.read_bytes() != data:
        write_bytes(paths.cell, data, sync_name=False)


def _refuse_foreign(root: Path, study: Study, known: Lock | None) -> None:
    if known is None:
        if root.exists() and not (root.is_dir() and _is_bare(StudyPaths(root))):
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


def _is_bare(paths: StudyPaths) -> bool:
    """Whether a directory holds nothing, or what `create` leaves when it is killed before the lock file is there."""
    begun = {paths.cells, paths.plan}
    others = [p for p in paths.root.iterdir() if p not in begun and not p.name.startswith(TEMP_PREFIX)]
    return not others and not (paths.cells.is_dir() and any(paths.cells.iterdir()))
