"""Protocol `residual`: its plan, its cells, its analysis, its report."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from nullarm.protocols.base import CellContext, CellResult, Design, Protocol
from nullarm.protocols.residual.parameters import ResidualParameters
from nullarm.sites.preflight import Check
from nullarm.study.plan import Cell, Plan, make_plan
from nullarm.study.spec import Study

if TYPE_CHECKING:
    from nullarm.analysis import Analysis
    from nullarm.report.document import Document
    from nullarm.store.study_store import StudyStore


class Residual(Protocol[ResidualParameters]):
    """Where in depth and position does fine-tuning change the residual stream?"""

    name: ClassVar[str] = "residual"
    version: ClassVar[int] = 1
    parameters_model = ResidualParameters

    def plan(self, study: Study) -> Plan:
        """Per arm, replicate and seed one capture, and the interventions that were asked for."""
        from nullarm.protocols.residual.planning import residual_cells

        return make_plan(residual_cells(study, self.parameters(study), self.version))

    def design(self, study: Study, plan: Plan) -> Design:
        """Least attainable p of the declared contrasts, and which pairs fit which GPU."""
        from nullarm.analysis import least_attainable_p, primary_effect, refusals
        from nullarm.protocols.model_access import download_bytes
        from nullarm.protocols.residual.memory import fit_notes

        parameters = self.parameters(study)
        need, _ = download_bytes(ref for pair in parameters.pairs.values() for ref in (pair.base, pair.sft))
        notes = fit_notes(parameters) + ((f"downloads about {need / (1 << 30):.0f} GiB to HF_HOME",) if need else ())
        return Design(least_attainable_p(study), primary_effect(study), notes, refusals(study))

    def checks(self, study: Study) -> list[Check]:
        """Access to every model, and room for what has to be downloaded."""
        from nullarm.protocols.model_access import downloads, model_access

        pairs = self.parameters(study).pairs.values()
        bases = dict.fromkeys(pair.base for pair in pairs)
        tuned = dict.fromkeys(pair.sft for pair in pairs if pair.sft not in bases)
        access = [*(model_access(ref) for ref in bases), *(model_access(ref, adapter=True) for ref in tuned)]
        return [*access, downloads([*bases, *tuned])]

    def run_cell(self, context: CellContext) -> CellResult:
        """The work of one stage."""
        from nullarm.protocols.residual import cells

        stages = {
            "tune_lens": cells.run_tune_lens,
            "capture": cells.run_capture,
            "patching": cells.run_intervention,
            "layer_swap": cells.run_intervention,
            "steering": cells.run_intervention,
        }
        return stages[context.cell.stage](context)

    def harvest(self, store: StudyStore, cell: Cell) -> None:
        """The JSON of a finished capture, and its line in the manifest."""
        from nullarm.protocols.residual.outputs import write_cell

        write_cell(store, cell)

    def analyse(self, store: StudyStore) -> Analysis:
        """The declared contrasts on per-prompt divergences."""
        from nullarm.analysis import analyse

        return analyse(store, ("capture",))

    def document(self, store: StudyStore, analysis: Analysis) -> Document:
        """The report."""
        from nullarm.protocols.residual.report.document import document

        return document(store, analysis)

    def write_outputs(self, store: StudyStore, analysis: Analysis) -> str:
        """JSON files and manifest of the source, and the closing block."""
        from nullarm.protocols.residual.outputs import write_outputs

        return write_outputs(store, analysis)
