"""The coordinator's index over the cells: fast to list, never the truth, rebuilt from the cells when it is gone."""

from __future__ import annotations

import sqlite3
import time
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nullarm.errors import StorageError

LOCK_TIMEOUT_S = 30.0
"""How long a command waits for another one that is writing."""

State = Literal["pending", "running", "done", "failed", "blocked"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS cells (
  id TEXT PRIMARY KEY, position INTEGER NOT NULL, label TEXT NOT NULL, state TEXT NOT NULL DEFAULT 'pending',
  attempt INTEGER NOT NULL DEFAULT 0, outcome TEXT, seconds REAL, message TEXT, updated REAL NOT NULL);
CREATE TABLE IF NOT EXISTS spend (started REAL PRIMARY KEY, seconds REAL NOT NULL, price_per_hour REAL NOT NULL);
"""


@dataclass(frozen=True)
class Change:
    """What the index is told of a cell."""

    id: str
    state: State
    attempt: int = 0
    outcome: str | None = None
    seconds: float | None = None
    """Wall time of the finished cell."""
    message: str | None = None
    """Why it failed or is blocked."""


@dataclass(frozen=True)
class Entry(Change):
    """One line of the index."""

    label: str = ""
    updated: float = 0.0
    """When the line was last changed, in Unix seconds."""


class Journal:
    """SQLite index of one study directory, in write-ahead mode so that readers never wait.

    Args:
        path: Its file; None for an index in memory, for a directory that cannot be written.

    Raises:
        StorageError: The disk is full, read-only or gone. Every method may raise it.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path or Path(":memory:")
        with self._storage_errors():
            self._db = self._open()
        weakref.finalize(self, self._db.close)  # a store in a notebook is seldom closed by hand

    def _open(self) -> sqlite3.Connection:
        try:
            return self._connect()
        except sqlite3.OperationalError:
            raise  # locked, read-only, full: the file itself may be in order
        except sqlite3.DatabaseError:
            # Not a database any more: it is an index, so it starts anew and the caller fills it from the cells.
            for suffix in ("", "-wal", "-shm"):
                Path(f"{self.path}{suffix}").unlink(missing_ok=True)
            return self._connect()

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, timeout=LOCK_TIMEOUT_S, isolation_level=None)
        try:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=NORMAL")
            db.executescript(_SCHEMA)
            if (found := db.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
                raise sqlite3.DatabaseError(found)
        except sqlite3.Error:
            db.close()
            raise
        return db

    def close(self) -> None:
        """Close the connection."""
        self._db.close()

    def fill(self, cells: Iterable[tuple[str, str]]) -> None:
        """Make the plan's cells (id, label) the content of the index; known ones keep their state, others go."""
        rows = [(cell_id, position, label, time.time()) for position, (cell_id, label) in enumerate(cells)]
        with self._transaction() as db:
            db.execute("UPDATE cells SET position = -1")
            db.executemany(
                "INSERT INTO cells (id, position, label, updated) VALUES (?, ?, ?, ?) "
                "ON CONFLICT (id) DO UPDATE SET position = excluded.position, label = excluded.label",
                rows,
            )
            db.execute("DELETE FROM cells WHERE position = -1")

    def update(self, changes: Iterable[Change]) -> None:
        """Note the states of cells, in one transaction."""
        now = time.time()
        with self._transaction() as db:
            db.executemany(
                "UPDATE cells SET state = ?, attempt = ?, outcome = ?, seconds = ?, message = ?, updated = ? "
                "WHERE id = ?",
                [(c.state, c.attempt, c.outcome, c.seconds, c.message, now, c.id) for c in changes],
            )

    def is_empty(self) -> bool:
        """Whether it knows no cell: a new index, or one that had to start anew."""
        with self._storage_errors():
            return self._db.execute("SELECT 1 FROM cells LIMIT 1").fetchone() is None

    def entries(self) -> list[Entry]:
        """All cells in plan order."""
        query = "SELECT id, state, attempt, outcome, seconds, message, label, updated FROM cells ORDER BY position"
        with self._storage_errors():
            return [Entry(*row) for row in self._db.execute(query)]

    def spend(self, started: float, seconds: float, price_per_hour: float) -> None:
        """Note what the run that started at `started` (Unix seconds) has used so far."""
        with self._transaction() as db:
            db.execute(
                "INSERT INTO spend VALUES (?, ?, ?) ON CONFLICT (started) DO UPDATE SET seconds = excluded.seconds",
                (started, seconds, price_per_hour),
            )

    def spent(self) -> tuple[float, float]:
        """Machine seconds and US dollars of all runs so far."""
        query = "SELECT coalesce(sum(seconds), 0), coalesce(sum(seconds * price_per_hour) / 3600, 0) FROM spend"
        with self._storage_errors():
            seconds, cost = self._db.execute(query).fetchone()
        return float(seconds), float(cost)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._storage_errors(), self._db:
            self._db.execute("BEGIN IMMEDIATE")
            yield self._db

    @contextmanager
    def _storage_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            cures = {
                sqlite3.SQLITE_FULL: f"free space on {self.path.parent}, then `nullarm resume`",
                sqlite3.SQLITE_CORRUPT: f"remove {self.path}: it is rebuilt from the cells",
                sqlite3.SQLITE_BUSY: "wait for the other command, or stop it",
            }
            cure = cures.get(getattr(error, "sqlite_errorcode", 0), f"check that {self.path.parent} can be written")
            raise StorageError(f"cannot use the index {self.path}: {error}", next_command=cure) from error
