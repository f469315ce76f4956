"""Where records of residual comparisons come from: a JSON file, a cell directory, all captures of a study directory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from nullarm.errors import UsageError
from nullarm.protocols.residual.export.read import read_records
from nullarm.protocols.residual.export.records import records_of
from nullarm.protocols.residual.export.schema import Record
from nullarm.protocols.residual.tables import CAPTURE
from nullarm.store.cell import finished
from nullarm.store.paths import CellPaths, StudyPaths
from nullarm.store.record import FinishedCell
from nullarm.store.study_store import StudyStore

VALID = "a JSON file of the source's schema, a study directory, or the directory of a finished capture"


def records_from(path: str | Path) -> Iterator[Record]:
    """All records of a JSON file, of a finished capture's directory, or of all finished captures of a study directory.

    Raises:
        UsageError: It is none of these, or holds no finished capture.
        FormatError: The file is of neither schema.
        IntegrityError: An artefact is not what its hash says.
    """
    for _, records in sources(Path(path)):
        yield from records


def sources(path: Path) -> Iterator[tuple[str, Iterator[Record]]]:
    """Named streams of records: of a study one per capture, else one.

    Raises:
        UsageError: It is none of these, or holds no finished capture.
    """
    if path.is_file():
        yield str(path), read_records(path)
    elif StudyPaths(path).lock.exists():
        yield from _captures(path)
    elif (cell := finished(CellPaths(path))) and CAPTURE in cell.record.artefacts:
        yield str(path), records_of(cell)
    else:
        problem = "holds no residual comparison" if path.exists() else "does not exist"
        raise UsageError(f"{path} {problem}", valid=VALID)


def _captures(root: Path) -> Iterator[tuple[str, Iterator[Record]]]:
    with closing(StudyStore.open(root)) as store:
        found = [(cell, done) for cell in store.plan if (done := _capture(store, cell.id))]
    if not found:
        raise UsageError(f"{root} holds no finished capture", next_command=f"nullarm status {root}")
    yield from ((f"{root}: {cell.label}", records_of(done)) for cell, done in found)


def _capture(store: StudyStore, cell_id: str) -> FinishedCell | None:
    done = store.finished(cell_id)
    return done if done and CAPTURE in done.record.artefacts else None
