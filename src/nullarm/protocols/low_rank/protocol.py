"""Protocol `low_rank`: its plan, its cells, its analysis, its report."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from nullarm.protocols.base import CellContext, CellResult, Design, Protocol
from nullarm.protocols.low_rank.parameters import LowRankParameters
from nullarm.protocols.low_rank.tables import COMPRESS, EVALUATE, MEASURE, SPECTRA, SPECULATE, SWEEP
from nullarm.sites.preflight import Check
from nullarm.study.plan import Cell, Plan, make_plan
from nullarm.study.spec import Study

if TYPE_CHECKING:
    from nullarm.analysis import Analysis
    from nullarm.report.document import Document
    from nullarm.store.study_store import StudyStore


class LowRank(Protocol[LowRankParameters]):
    """What does a model lose, and what does it gain, when its matrices are made of low rank?"""

    name: ClassVar[str] = "low_rank"
    version: ClassVar[int] = 1
    parameters_model = LowRankParameters

    def plan(self, study: Study) -> Plan:
        """Spectra, sweep, and per seed each arm's factors, its perplexity and the timing sessions."""
        from nullarm.protocols.low_rank.planning import low_rank_cells

        return make_plan(low_rank_cells(study, self.parameters(study), self.version))

    def design(self, study: Study, plan: Plan) -> Design:
        """Least attainable p of the declared contrasts, and how many bytes each arm keeps."""
        from nullarm.analysis import least_attainable_p, primary_effect, refusals
        from nullarm.protocols.low_rank.notes import notes

        parameters = self.parameters(study)
        return Design(least_attainable_p(study), primary_effect(study), notes(parameters), refusals(study))

    def checks(self, study: Study) -> list[Check]:
        """Access to model and text, and room for what has to be downloaded."""
        from nullarm.models.texts.factory import make_text
        from nullarm.protocols.model_access import downloads, model_access, text_access

        parameters = self.parameters(study)
        return [model_access(parameters.model), text_access(make_text(parameters.text)), downloads([parameters.model])]

    def run_cell(self, context: CellContext) -> CellResult:
        """The work of one stage."""
        from nullarm.protocols.low_rank.cells import compress, evaluate, measure, spectra, speculate, sweep

        stages = {
            SPECTRA: spectra.run,
            SWEEP: sweep.run,
            COMPRESS: compress.run,
            EVALUATE: evaluate.run,
            SPECULATE: speculate.run,
            MEASURE: measure.run,
        }
        return stages[context.cell.stage](context)

    def harvest(self, store: StudyStore, cell: Cell) -> None:
        """The log of an arm, and the files of the null re-run when its session has ended."""
        from nullarm.protocols.low_rank.runbook.outputs import write_cell

        write_cell(store, cell)

    def analyse(self, store: StudyStore) -> Analysis:
        """The declared contrasts on windows and on the blocks of timing sessions."""
        from nullarm.protocols.low_rank.analyse import analyse

        return analyse(store)

    def document(self, store: StudyStore, analysis: Analysis) -> Document:
        """The report."""
        from nullarm.protocols.low_rank.report.document import document

        return document(store, analysis)

    def write_outputs(self, store: StudyStore, analysis: Analysis) -> str:
        """The runbook's files, and the closing block."""
        from nullarm.protocols.low_rank.runbook.outputs import write_outputs

        return write_outputs(store, analysis)
