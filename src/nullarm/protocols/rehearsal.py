"""Protocol `rehearsal`: cells that compute nothing of interest, to try out an engine or a site without a model.

Per seed one `prepare` cell draws item difficulties; every arm's `measure` cell scores the same items in chunks. The
planted effect of an arm is a parameter, so the verdict to expect is known.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field

from nullarm.errors import Preempted
from nullarm.protocols.base import CellContext, CellResult, Design, Protocol
from nullarm.sites.preflight import Check
from nullarm.study.identity import content_hash, identifying
from nullarm.study.plan import Cell, Estimate, Plan, make_plan
from nullarm.study.spec import Strict, Study

if TYPE_CHECKING:
    from nullarm.analysis import Analysis
    from nullarm.report.document import Document
    from nullarm.store.study_store import StudyStore


class RehearsalParameters(Strict):
    """Parameters of a rehearsal."""

    items: int = Field(default=40, ge=1)
    """Items per cell."""
    chunks: int = Field(default=4, ge=1)
    """Chunks the items are cut into."""
    chunk_seconds: float = Field(default=0.0, ge=0)
    """How long each chunk pretends to work."""
    effects: dict[str, float] = Field(default_factory=dict)
    """Planted effect by arm, added to the score of every item."""
    replicate_sd: float = Field(default=0.05, ge=0)
    """Standard deviation of the noise that a cell shares over its items."""
    fail: tuple[str, ...] = ()
    """Arms whose cells raise an error."""


class Rehearsal(Protocol[RehearsalParameters]):
    """Cells without models."""

    name: ClassVar[str] = "rehearsal"
    version: ClassVar[int] = 1
    parameters_model = RehearsalParameters

    def plan(self, study: Study) -> Plan:
        """One `prepare` cell per seed, and a `measure` cell per seed, arm and replicate."""
        parameters = identifying(self.parameters(study), {})
        seconds = parameters["chunks"] * parameters["chunk_seconds"]
        cells: list[Cell] = []
        for seed in study.seeds:
            prepare = self._cell(study, "prepare", {"items": parameters["items"]}, seed, Estimate(0.0, 4_000))
            cells.append(prepare)
            for name, arm in study.arms.items():
                for replicate in range(1, arm.replicates + 1):
                    cells.append(
                        self._cell(
                            study, "measure", parameters, seed, Estimate(seconds, 8_000), arm=name,
                            replicate=replicate if arm.replicates > 1 else None, needs={"prepare": prepare.id},
                        )
                    )  # fmt: skip
        return make_plan(cells)

    def _cell(
        self, study: Study, stage: str, parameters: dict[str, object], seed: int, estimate: Estimate, **more: object
    ) -> Cell:
        return Cell(
            protocol=study.protocol, version=self.version, stage=stage, parameters=parameters, seed=seed,
            smoke=study.smoke, estimate=estimate, **more,  # type: ignore[arg-type]
        )  # fmt: skip

    def design(self, study: Study, plan: Plan) -> Design:
        """Least attainable p and detectable effect of the declared contrasts."""
        from nullarm.analysis import least_attainable_p, primary_effect, refusals

        return Design(least_attainable_p(study), primary_effect(study), refusals=refusals(study))

    def checks(self, study: Study) -> list[Check]:
        """Nothing: a rehearsal runs anywhere."""
        return []

    def run_cell(self, context: CellContext) -> CellResult:
        """Draw difficulties, or score items chunk by chunk."""
        parameters = context.cell.parameters
        if context.cell.stage == "prepare":
            rng = np.random.default_rng(context.cell.seed)
            context.writer.json_artefact("difficulty", rng.normal(size=parameters["items"]).tolist())
            return CellResult({"items": parameters["items"]})
        if context.cell.arm in parameters["fail"]:
            raise RuntimeError(f"arm {context.cell.arm} was asked to fail")
        tables = [self._chunk(context, index) for index in range(parameters["chunks"])]
        table = pa.concat_tables(tables)
        context.writer.table_artefact("items", table)
        return CellResult({"score": float(np.mean(table["score"].to_numpy()))})

    def _chunk(self, context: CellContext, index: int) -> pa.Table:
        if context.should_stop():
            raise Preempted(f"asked to stop before chunk {index}")
        parameters = context.cell.parameters

        def make() -> pa.Table:
            time.sleep(parameters["chunk_seconds"])
            difficulty = np.array(context.needs["prepare"].json("difficulty"))
            shared, own = self._noise(context.cell, len(difficulty))
            effect = parameters["effects"].get(context.cell.arm, 0.0)
            scores = difficulty + effect + parameters["replicate_sd"] * shared + 0.1 * own
            mine = np.array_split(np.arange(len(difficulty)), parameters["chunks"])[index]
            return pa.table({"item": [f"item-{i}" for i in mine], "score": scores[mine]})

        table = context.writer.table_chunk(f"items-{index:04d}", make)
        context.progress(index + 1, parameters["chunks"], "chunks")
        return table

    def _noise(self, cell: Cell, items: int) -> tuple[float, np.ndarray]:
        rng = np.random.default_rng(int(content_hash([cell.seed, cell.arm, cell.replicate])[:16], 16))
        return float(rng.normal()), rng.normal(size=items)

    def harvest(self, store: StudyStore, cell: Cell) -> None:
        """Nothing: a rehearsal leaves tables only."""

    def analyse(self, store: StudyStore) -> Analysis:
        """The declared contrasts."""
        from nullarm.analysis import analyse

        return analyse(store, ("measure",))

    def document(self, store: StudyStore, analysis: Analysis) -> Document:
        """Verdicts and the arms' scores."""
        from nullarm.protocols.findings import document_of

        return document_of(store, analysis, ())

    def write_outputs(self, store: StudyStore, analysis: Analysis) -> str:
        """Nothing beside the tables."""
        return "\n".join(f"{f.judgement.name}: {f.judgement.verdict} ({f.judgement.reason})" for f in analysis.findings)
