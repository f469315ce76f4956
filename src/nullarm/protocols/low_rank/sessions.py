"""Timing sessions as they were held, each judged by itself. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np

from nullarm.bench.blocks import judged
from nullarm.bench.judging import SessionJudgement, judge_session
from nullarm.bench.runs import Arm, Run, State, runs_of
from nullarm.bench.settings import BenchSettings
from nullarm.protocols.low_rank.planning import timed
from nullarm.protocols.low_rank.tables import MEASURE, RUNS
from nullarm.stats.verdict import Interval
from nullarm.store.record import FinishedCell
from nullarm.store.study_store import StudyStore
from nullarm.study.plan import Cell
from nullarm.study.spec import Contrast


@dataclass(frozen=True)
class TimingSession:
    """A finished timing session.

    Attributes:
        name: Its contrast, with the seed where there are several.
        contrast: What was timed against what.
        cell: The cell it was held in.
        runs: Every run, the rejected ones too.
        judgement: The session by itself. It knows nothing of a smoke run, or of arms with the same weights.
    """

    name: str
    contrast: Contrast
    cell: Cell
    runs: tuple[Run, ...]
    judgement: SessionJudgement

    @property
    def believed(self) -> bool:
        """Whether its numbers may be used; those of a contaminated session are kept in its judgement."""
        return self.judgement.session is not State.CONTAMINATED

    @property
    def medians(self) -> dict[str, float | None]:
        """Of the runs that are judged, by arm: `control_tokens_per_s`, `control_prefill_s`, and the treatment's."""
        timed = [run for run in judged(self.runs) if run.phase == "contrast"]
        return {
            f"{arm}_{what}": float(np.median(found)) if found else None
            for arm in get_args(Arm)
            for what in ("tokens_per_s", "prefill_s")
            for found in [[getattr(run, what) for run in timed if run.arm == arm]]
        }

    @property
    def ratio(self) -> float | None:
        """Tokens a second, treatment ÷ control; None where there is nothing to be believed."""
        estimate = self.judgement.estimate
        return None if estimate is None or not self.believed else 1 + estimate

    @property
    def ratio_interval(self) -> Interval | None:
        """Its interval at 1 − 2α."""
        ci = self.judgement.ci
        return None if ci is None or not self.believed else replace(ci, low=1 + ci.low, high=1 + ci.high)


def timing_sessions(store: StudyStore) -> list[TimingSession]:
    """The timing sessions that were held, by contrast in their declared order.

    Raises:
        IntegrityError: An artefact is not what its hash says.
    """
    several = len(store.lock.study.seeds) > 1
    return [
        TimingSession(
            f"{contrast.name}, seed {cell.seed}" if several else contrast.name, contrast, cell,
            (runs := tuple(runs_of(done.table(RUNS)))), _judged(store, contrast, cell, runs),
        )
        for contrast in timed(store.lock.study)
        for cell, done in finished_cells(store, MEASURE)
        if cell.slice == contrast.name
    ]  # fmt: skip


def finished_cells(store: StudyStore, stage: str) -> Iterator[tuple[Cell, FinishedCell]]:
    """The cells of a stage that ended `ok`, in plan order."""
    for cell in store.plan:
        finished = store.finished(cell.id) if cell.stage == stage else None
        if finished is not None and finished.record.outcome == "ok":
            yield cell, finished


def _judged(store: StudyStore, contrast: Contrast, cell: Cell, runs: Sequence[Run]) -> SessionJudgement:
    declared = store.lock.study.analysis
    return judge_session(
        runs, alpha=declared.alpha, seed=declared.seed,
        margin=declared.margin if contrast.margin is None else contrast.margin,
        settings=BenchSettings.model_validate(cell.parameters["bench"]),
    )  # fmt: skip
