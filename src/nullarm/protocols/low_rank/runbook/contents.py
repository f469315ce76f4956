"""Everything that the summary and the closing block tell, read from the store once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from nullarm.analysis import Analysis, Finding
from nullarm.protocols.low_rank.parameters import LowRankParameters
from nullarm.protocols.low_rank.results import (
    ArmResult,
    SpeculationResult,
    arm_results,
    baseline_arm,
    speculations,
)
from nullarm.protocols.low_rank.runbook.null_rerun import NullRerun, null_rerun
from nullarm.protocols.low_rank.runbook.progress import Progress
from nullarm.protocols.low_rank.sessions import TimingSession, timing_sessions
from nullarm.protocols.low_rank.tolerances import Check, checks
from nullarm.store.study_store import StudyStore
from nullarm.study.plan import Cell
from nullarm.study.spec import Study


@dataclass(frozen=True)
class Contents:
    """A study's results as they are now."""

    store: StudyStore
    analysis: Analysis

    @cached_property
    def study(self) -> Study:
        """The study."""
        return self.store.lock.study

    @cached_property
    def parameters(self) -> LowRankParameters:
        """Its parameters."""
        return LowRankParameters.model_validate(self.study.parameters)

    @cached_property
    def progress(self) -> Progress:
        """How far its cells are."""
        return Progress.of(self.store)

    @cached_property
    def arms(self) -> dict[str, ArmResult]:
        """What was evaluated, by the id of the cell."""
        return {result.cell: result for result in arm_results(self.store, [*self.sessions.values()])}

    @cached_property
    def speculations(self) -> dict[str, SpeculationResult]:
        """What speculation came to, by the id of the cell."""
        return {result.cell.id: result for result in speculations(self.store, [*self.sessions.values()])}

    @cached_property
    def sessions(self) -> dict[str, TimingSession]:
        """Timing sessions that were held, by the id of the cell."""
        return {session.cell.id: session for session in timing_sessions(self.store)}

    @cached_property
    def rerun(self) -> NullRerun | None:
        """The null re-run; None when there is none, or not yet."""
        return null_rerun(self.store, [*self.sessions.values()], self.analysis.findings)

    @cached_property
    def checks(self) -> list[Check]:
        """The source's tolerances, checked."""
        return checks([*self.arms.values()], [*self.sessions.values()], self.parameters.rerun)

    @cached_property
    def baseline(self) -> str | None:
        """The arm that is the model as it is loaded."""
        return baseline_arm(self.store)

    def cells(self, stage: str) -> list[Cell]:
        """Those of a stage, finished or not."""
        return [cell for cell in self.store.plan if cell.stage == stage]

    def findings(self, arm: str) -> list[Finding]:
        """The contrasts in which an arm is one of the two."""
        return [f for f in self.analysis.findings if arm in (f.contrast.treatment, f.contrast.control)]

    def measured_speed_up(self, result: SpeculationResult) -> TimingSession | None:
        """The session in which a speculating arm was timed against the model as it is loaded."""
        timed = result.speed
        return timed if timed is not None and timed.contrast.control == self.baseline else None
