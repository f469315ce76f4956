"""Protocol `rank_mechanism`: its plan, its cells, its analysis, its report."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from nullarm.errors import StudyError
from nullarm.protocols.base import CellContext, CellResult, Design, Protocol, refuse_unknown_arms
from nullarm.protocols.rank_mechanism.arms import ARMS
from nullarm.protocols.rank_mechanism.parameters import RankMechanismParameters
from nullarm.sites.preflight import Check
from nullarm.study.plan import Cell, Plan, make_plan
from nullarm.study.spec import Study

if TYPE_CHECKING:
    from nullarm.analysis import Analysis
    from nullarm.report.document import Document
    from nullarm.store.study_store import StudyStore


class RankMechanism(Protocol[RankMechanismParameters]):
    """Do audit-guided per-layer LoRA ranks beat the same ranks shuffled?"""

    name: ClassVar[str] = "rank_mechanism"
    version: ClassVar[int] = 1
    parameters_model = RankMechanismParameters

    def plan(self, study: Study) -> Plan:
        """Per seed probe → audit → allocate → one retrain per arm and replicate."""
        from nullarm.protocols.rank_mechanism.planning import rank_mechanism_cells

        refuse_unknown_arms(study, ARMS)
        parameters = self.parameters(study)
        if parameters.cross_fit and len(study.seeds) < 2:
            raise StudyError(
                "parameters.cross_fit needs another seed's audit", value=study.seeds, valid="2 or more seeds"
            )
        return make_plan(rank_mechanism_cells(study, parameters, self.version))

    def design(self, study: Study, plan: Plan) -> Design:
        """Least attainable p and detectable effect of the declared contrasts."""
        from nullarm.analysis import least_attainable_p, primary_effect, refusals

        notes = (
            f"certifiable: {len(study.seeds)} seeds and {self.parameters(study).training.steps} steps"
            if len(study.seeds) >= 3 and self.parameters(study).training.steps >= 500
            else "screening: the source asks for 3 seeds and 500 steps to certify",
        )
        return Design(least_attainable_p(study), primary_effect(study), notes, refusals(study))

    def checks(self, study: Study) -> list[Check]:
        """Access to the model, and a self-test of the shuffle on the model's own shapes."""
        from nullarm.protocols.model_access import model_access
        from nullarm.protocols.rank_mechanism.preflight import shuffle_self_test

        parameters = self.parameters(study)
        return [model_access(parameters.model), shuffle_self_test(parameters, study)]

    def run_cell(self, context: CellContext) -> CellResult:
        """The work of one stage."""
        from nullarm.protocols.rank_mechanism import cells

        stages = {
            "probe": cells.run_probe,
            "audit": cells.run_audit,
            "allocate": cells.run_allocate,
            "retrain": cells.run_retrain,
        }
        return stages[context.cell.stage](context)

    def harvest(self, store: StudyStore, cell: Cell) -> None:
        """Nothing: the runbook's files need all cells of a seed."""

    def analyse(self, store: StudyStore) -> Analysis:
        """The declared contrasts on per-item test results."""
        from nullarm.analysis import analyse

        return analyse(store, ("probe", "retrain"))

    def document(self, store: StudyStore, analysis: Analysis) -> Document:
        """The report."""
        from nullarm.protocols.rank_mechanism.report import document

        return document(store, analysis)

    def write_outputs(self, store: StudyStore, analysis: Analysis) -> str:
        """The runbook's files, and its closing block."""
        from nullarm.protocols.rank_mechanism.outputs import write_outputs

        return write_outputs(store, analysis)
