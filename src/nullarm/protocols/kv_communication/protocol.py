"""Protocol `kv_communication`: its plan, its cells, its analysis, its report."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from nullarm.protocols.base import CellContext, CellResult, Design, Protocol
from nullarm.protocols.kv_communication.parameters import KvCommunicationParameters
from nullarm.protocols.kv_communication.tables import CALIBRATE, EVALUATE, TRAIN_FUSER
from nullarm.sites.preflight import Check
from nullarm.study.plan import Cell, Plan, make_plan
from nullarm.study.spec import Study

if TYPE_CHECKING:
    from nullarm.analysis import Analysis
    from nullarm.report.document import Document
    from nullarm.store.study_store import StudyStore


class KvCommunication(Protocol[KvCommunicationParameters]):
    """How few bytes of key-value cache can one model send another?"""

    name: ClassVar[str] = "kv_communication"
    version: ClassVar[int] = 1
    parameters_model = KvCommunicationParameters

    def plan(self, study: Study) -> Plan:
        """Per seed the fusers, their calibration, and one evaluation per arm and data set."""
        from nullarm.protocols.kv_communication.planning import kv_communication_cells

        return make_plan(kv_communication_cells(study, self.parameters(study), self.version))

    def design(self, study: Study, plan: Plan) -> Design:
        """Least attainable p of the declared contrasts, and what a token costs on the wire."""
        from nullarm.analysis import least_attainable_p, primary_effect, refusals
        from nullarm.protocols.kv_communication.notes import notes

        parameters = self.parameters(study)
        return Design(least_attainable_p(study), primary_effect(study), notes(parameters), refusals(study))

    def checks(self, study: Study) -> list[Check]:
        """Access to every model, fuser and data set, and room for what has to be downloaded."""
        from nullarm.protocols.kv_communication.fuser.access import fuser_access
        from nullarm.protocols.kv_communication.planning import datasets
        from nullarm.protocols.model_access import downloads, model_access, task_access

        parameters = self.parameters(study)
        refs = dict.fromkeys([parameters.receiver, *parameters.sharers.values()])
        fusers = dict.fromkeys(f.directory for f in parameters.fusers.values() if f.directory is not None)
        return [
            *(model_access(ref) for ref in refs),
            *(fuser_access(ref) for ref in fusers),
            *(task_access(name, task) for name, task in datasets(parameters).items()),
            downloads(refs),
        ]

    def run_cell(self, context: CellContext) -> CellResult:
        """The work of one stage."""
        from nullarm.protocols.kv_communication.cells import calibrate, evaluate, train_fuser

        stages = {
            TRAIN_FUSER: train_fuser.run,
            CALIBRATE: calibrate.run,
            EVALUATE: evaluate.run,
        }
        return stages[context.cell.stage](context)

    def harvest(self, store: StudyStore, cell: Cell) -> None:
        """The files of the runbook's tree that a finished cell fills."""
        from nullarm.protocols.kv_communication.runbook.outputs import write_cell

        write_cell(store, cell)

    def analyse(self, store: StudyStore) -> Analysis:
        """The declared contrasts on per-item measurements."""
        from nullarm.analysis import analyse

        return analyse(store, (EVALUATE,))

    def document(self, store: StudyStore, analysis: Analysis) -> Document:
        """The report."""
        from nullarm.protocols.kv_communication.report.document import document

        return document(store, analysis)

    def write_outputs(self, store: StudyStore, analysis: Analysis) -> str:
        """The runbook's tree, the budget curves, and the closing block."""
        from nullarm.protocols.kv_communication.runbook.outputs import write_outputs

        return write_outputs(store, analysis)
