"""Every file name of a study directory. Nothing else in the package spells one."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class CellPaths:
    """Files of one cell, `cells/<cell_id>/`."""

    root: Path

    @property
    def cell(self) -> Path:
        """What the cell is: its identity and settings."""
        return self.root / "cell.json"

    @property
    def lease(self) -> Path:
        """Which attempt owns the cell."""
        return self.root / "lease.json"

    @property
    def lock(self) -> Path:
        """Held with `flock` while the lease is changed and while anything is committed."""
        return self.root / "lock"

    @property
    def chunks(self) -> Path:
        """Committed chunks, one file each, hash in the name."""
        return self.root / "chunks"

    @property
    def artefacts(self) -> Path:
        """Files the cell hands on, hash in the name."""
        return self.root / "artefacts"

    @property
    def scratch(self) -> Path:
        """Checkpoints and other working files; removed once the record is there."""
        return self.root / "scratch"

    @property
    def record(self) -> Path:
        """What the finished cell says: its presence and hash are completion."""
        return self.root / "record.json"

    @property
    def failure(self) -> Path:
        """Why the last attempt failed."""
        return self.root / "failure.json"

    @property
    def log(self) -> Path:
        """Output of the cell's attempts."""
        return self.root / "log.txt"


@dataclass(frozen=True)
class StudyPaths:
    """Files of one study directory."""

    root: Path

    @property
    def lock(self) -> Path:
        """The resolved study and its hashes."""
        return self.root / "study.lock.yaml"

    @property
    def plan(self) -> Path:
        """All planned cells."""
        return self.root / "plan.json"

    @property
    def journal(self) -> Path:
        """The coordinator's index over the cells; can be rebuilt."""
        return self.root / "journal.sqlite"

    @property
    def cells(self) -> Path:
        """Directory of all cells."""
        return self.root / "cells"

    def cell(self, cell_id: str) -> CellPaths:
        """Files of one cell."""
        return CellPaths(self.cells / cell_id)

    def has_record(self, cell_id: str) -> bool:
        """Whether the cell's `record.json` exists, asked of 10,000 cells in a fraction of a second."""
        return os.path.exists(f"{self.root}/cells/{cell_id}/record.json")  # `Path` objects would take most of the time

    @property
    def tables(self) -> Path:
        """Final tables over all cells of the plan."""
        return self.root / "tables"

    @property
    def manifest(self) -> Path:
        """One line per cell, for people and spreadsheets."""
        return self.root / "manifest.csv"

    @property
    def analysis(self) -> Path:
        """The verdicts and what they rest on."""
        return self.root / "analysis.json"

    @property
    def report_html(self) -> Path:
        """The report as one offline page."""
        return self.root / "report.html"

    @property
    def report_markdown(self) -> Path:
        """The report as Markdown."""
        return self.root / "report.md"

    @property
    def output(self) -> Path:
        """Files under the names of the source's runbook."""
        return self.root / "output"

    @property
    def coordinator_log(self) -> Path:
        """Output of a detached run."""
        return self.root / "run.log"
