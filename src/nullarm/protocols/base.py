"""A protocol: how one kind of study is planned, run cell by cell, and judged."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar

from nullarm.errors import StudyError
from nullarm.sites.preflight import Check
from nullarm.store.cell import CellWriter
from nullarm.store.record import FinishedCell, Outcome
from nullarm.study.plan import Cell, Plan
from nullarm.study.spec import Strict, Study
from nullarm.study.validate import validated

if TYPE_CHECKING:
    from nullarm.analysis import Analysis
    from nullarm.report.document import Document
    from nullarm.store.study_store import StudyStore


@dataclass(frozen=True)
class CellContext:
    """What a cell gets to work with."""

    cell: Cell
    writer: CellWriter
    needs: Mapping[str, FinishedCell]
    """The finished cells whose artefacts this one reads, by role."""
    should_stop: Callable[[], bool]
    """Whether somebody asked for a stop; looked at between chunks, answered by raising `Preempted`."""
    progress: Callable[[int, int, str], None]
    """Tells how far the cell is: done, total, of what."""


@dataclass(frozen=True)
class CellResult:
    """What a cell found, beside the artefacts it has written."""

    metrics: Mapping[str, float | int | None]
    outcome: Outcome = "ok"
    reason: str | None = None


@dataclass(frozen=True)
class Design:
    """What the plan can and cannot show, computed before any cell runs."""

    least_p: Mapping[str, float | None]
    """Least attainable p of each declared contrast; None where the test has no such bound."""
    minimum_detectable_effect: float | None
    """Of the primary contrast at 80 % power, in units of the metric; None without an expected standard deviation."""
    notes: tuple[str, ...] = ()
    refusals: tuple[str, ...] = field(default=())
    """Reasons for which the study must not run as it is."""


ParametersT = TypeVar("ParametersT", bound=Strict)


class Protocol(ABC, Generic[ParametersT]):
    """One kind of study. Importing a protocol imports no torch; `run_cell` does, inside the worker."""

    name: ClassVar[str]
    version: ClassVar[int]
    """Raised whenever the code changes what a cell finds: its cells are then new questions."""
    parameters_model: type[ParametersT]

    def parameters(self, study: Study, source: str = "", places: Mapping[str, str] | None = None) -> ParametersT:
        """The study's parameters as typed data.

        Args:
            study: The study.
            source: Name of its file, for messages; the study's own name when left out.
            places: Where each dotted key was said (`file:line`).

        Raises:
            StudyError: A key is unknown or a value wrong.
        """
        return validated(self.parameters_model, study.parameters, source or study.name, places, ("parameters",))

    @abstractmethod
    def plan(self, study: Study) -> Plan:
        """All cells of the study.

        Raises:
            StudyError: The study asks for something the protocol does not have.
        """

    @abstractmethod
    def design(self, study: Study, plan: Plan) -> Design:
        """What the plan can show."""

    @abstractmethod
    def checks(self, study: Study) -> list[Check]:
        """What preflight has to look at beside the machine."""

    @abstractmethod
    def run_cell(self, context: CellContext) -> CellResult:
        """Do the work of one cell: chunks and artefacts through `context.writer`, the rest as the result."""

    @abstractmethod
    def harvest(self, store: StudyStore, cell: Cell) -> None:
        """Write what a single finished cell is worth to its user, while others still run."""

    @abstractmethod
    def analyse(self, store: StudyStore) -> Analysis:
        """Judge the declared contrasts on what the store holds."""

    @abstractmethod
    def document(self, store: StudyStore, analysis: Analysis) -> Document:
        """The report."""

    @abstractmethod
    def write_outputs(self, store: StudyStore, analysis: Analysis) -> str:
        """Write the files that the source's runbook names, and return the block to print at the end."""


def refuse_unknown_arms(study: Study, known: Mapping[str, str]) -> None:
    """Check that a study names only arms that its protocol has.

    Raises:
        StudyError: An arm is unknown.
    """
    if unknown := [name for name in study.arms if name not in known]:
        raise StudyError(
            f"protocol {study.protocol} has no arm {unknown[0]!r}",
            valid=sorted(known),
            next_command="correct `factors` in the study file",
        )
