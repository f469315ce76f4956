"""What a study directory holds, seed by seed and arm by arm, for the runbook's files. What is missing is None."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from statistics import fmean
from typing import Any, Literal

from nullarm.protocols.rank_mechanism.arms import LEGACY_NAMES, PROBE, map_key
from nullarm.store.record import FinishedCell, Record
from nullarm.store.study_store import StudyStore
from nullarm.store.tables import ITEMS
from nullarm.study.plan import Cell
from nullarm.study.spec import Study

Status = Literal["OK", "UNDERTRAINED", "INVALID", "INCOMPLETE"]

ACCURACY = "accuracy"
"""The per-item measurement that the runbook's files are about, whatever the declared metric."""


@dataclass(frozen=True)
class Run:
    """One training of one arm, finished or not."""

    cell: Cell
    finished: FinishedCell | None
    planned: Mapping[str, int] | None
    """The arm's rank map as allocated; None for arms that make their own, and before allocation."""

    def metric(self, name: str) -> float | int | None:
        """A measurement of the whole cell."""
        return self.finished.record.metrics.get(name) if self.finished else None

    def mean(self, measurement: str) -> float | None:
        """Mean of a per-item measurement over the test items."""
        if self.items is None or measurement not in self.items.column_names:
            return None
        return fmean(self.items[measurement].to_pylist()) if len(self.items) else None

    @cached_property
    def items(self) -> Any | None:
        """The per-item table of the test split, with a prediction for every item."""
        return self._artefact(ITEMS, "table")

    @cached_property
    def ranks(self) -> Mapping[str, int] | None:
        """{module: rank} as trained."""
        trained: Mapping[str, int] | None = self._artefact("ranks", "json")
        return trained

    def _artefact(self, name: str, form: Literal["table", "json"]) -> Any | None:
        if self.finished is None or name not in self.finished.record.artefacts:
            return None
        return self.finished.table(name) if form == "table" else self.finished.json(name)


@dataclass(frozen=True)
class SeedResults:
    """One seed.

    Attributes:
        seed: The seed.
        status: `OK` when every cell ended well; else what stopped the seed.
        reason: Why the status is not `OK`.
        runs: Every planned training by arm, in order of replicates.
        allocation: The rank maps of the seed's arms, as `allocate` hands them on.
        records: Every finished cell of the seed, in plan order.
        finished_at: When the last of them was written (ISO 8601, UTC); it stays as it is when files are written again.
    """

    seed: int
    status: Status
    reason: str | None
    runs: Mapping[str, tuple[Run, ...]]
    allocation: Mapping[str, Any] | None
    records: tuple[tuple[Cell, Record], ...]
    finished_at: str | None = None

    def mean(self, arm: str, measurement: str) -> float | None:
        """Mean over the arm's replicates of their means over items; None unless every replicate is measured."""
        return _complete_mean(run.mean(measurement) for run in self.runs.get(arm, ()))

    def parameters(self, arm: str) -> int | None:
        """LoRA parameters of the arm (the rounded mean, should replicates differ)."""
        mean = _complete_mean(run.metric("lora_parameters") for run in self.runs.get(arm, ()))
        return None if mean is None else round(mean)

    @property
    def probe(self) -> Run | None:
        """The probe's training."""
        return next(iter(self.runs.get(PROBE, ())), None)


def read_results(study: Study, store: StudyStore) -> tuple[SeedResults, ...]:
    """What the store holds of each seed of the study.

    Raises:
        IntegrityError: An artefact is not what its hash says.
    """
    cells = [(cell, store.finished(cell.id)) for cell in store.plan]
    return tuple(_seed(seed, [pair for pair in cells if pair[0].seed == seed]) for seed in study.seeds)


def legacy_name(arm: str) -> str:
    """The arm's name in the runbook's files."""
    return LEGACY_NAMES.get(arm, arm)


def _seed(seed: int, cells: list[tuple[Cell, FinishedCell | None]]) -> SeedResults:
    allocation = next(
        (f.json("allocation") for c, f in cells if c.stage == "allocate" and f and f.record.outcome == "ok"), None
    )
    runs: dict[str, tuple[Run, ...]] = {}
    for cell, finished in cells:
        if cell.arm is not None:
            planned = allocation["maps"].get(map_key(cell.arm, cell.replicate)) if allocation else None
            runs[cell.arm] = (*runs.get(cell.arm, ()), Run(cell, finished, planned))
    records = tuple((cell, finished.record) for cell, finished in cells if finished)
    status, reason = _status(cells, records)
    times = [finished.paths.record.stat().st_mtime for _, finished in cells if finished]
    finished_at = datetime.fromtimestamp(max(times), UTC).isoformat(timespec="seconds") if times else None
    return SeedResults(seed, status, reason, runs, allocation, records, finished_at)


def _status(
    cells: list[tuple[Cell, FinishedCell | None]], records: tuple[tuple[Cell, Record], ...]
) -> tuple[Status, str | None]:
    for _, record in records:
        if record.outcome != "ok":
            return ("UNDERTRAINED" if record.outcome == "undertrained" else "INVALID"), record.reason
    if missing := [cell.label for cell, finished in cells if finished is None]:
        return "INCOMPLETE", f"{len(missing)} of {len(cells)} cells are not finished, the first: {missing[0]}"
    return "OK", None


def _complete_mean(values: Iterable[float | None]) -> float | None:
    listed = list(values)
    known = [value for value in listed if value is not None]
    return fmean(known) if known and len(known) == len(listed) else None
