"""The cells of a rank-mechanism study: per seed probe → audit → allocate → one retrain per arm and replicate."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from nullarm.errors import ModelError
from nullarm.models.facts import linear_shapes, parameter_count
from nullarm.models.reference import content_id
from nullarm.models.tasks.base import Task
from nullarm.models.tasks.factory import make_task
from nullarm.protocols.rank_mechanism.arms import PROBE, SHUFFLED
from nullarm.protocols.rank_mechanism.parameters import LEFT_OUT, RankMechanismParameters
from nullarm.sites.devices import Device, find_device
from nullarm.study.identity import identifying
from nullarm.study.plan import Cell, Estimate
from nullarm.study.spec import Study

BYTES_PER_ITEM = 60
"""Of a row in the per-item table, compressed."""
ACTIVATION_BYTES_PER_TOKEN_AND_WIDTH = 34
"""Kept for the backward pass per token, layer and hidden unit in half precision (Korthikanti et al., 2205.05198, eq. 1,
without the quadratic term of attention, which fused kernels do not keep)."""
STAGE_SECONDS = 1.0
"""Of a cell that trains nothing."""


def rank_mechanism_cells(study: Study, parameters: RankMechanismParameters, version: int) -> list[Cell]:
    """All cells, in an order in which each follows what it needs."""
    planner = _Planner(study, parameters, version, make_task(parameters.task))
    probes = {seed: planner.probe(seed) for seed in study.seeds}
    audits = {seed: planner.audit(seed, probes[seed]) for seed in study.seeds}
    cells = [*probes.values(), *audits.values()]
    for index, seed in enumerate(study.seeds):
        source = study.seeds[(index + 1) % len(study.seeds)] if parameters.cross_fit else seed
        allocate = planner.allocate(seed, audits[source])
        cells += [allocate, *planner.retrains(seed, allocate)]
    return cells


def shuffles(study: Study) -> int:
    """K, the number of shuffles per seed."""
    return study.arms[SHUFFLED].replicates if SHUFFLED in study.arms else 0


@dataclass(frozen=True)
class _Planner:
    study: Study
    parameters: RankMechanismParameters
    version: int
    task: Task

    def probe(self, seed: int) -> Cell:
        shared = self._kept("dtype", "target_modules", "alpha", "alpha_rule", "dropout", "training", "train_items")
        gate = self.parameters.gate.model_dump(mode="json") if self.parameters.gate else None
        parameters = {**shared, "rank": self.parameters.probe_rank, "gate": gate}
        return self._cell("probe", seed, parameters, arm=PROBE, inputs=self._inputs, estimate=self._training)

    def audit(self, seed: int, probe: Cell) -> Cell:
        inputs = {"model": self._inputs["model"]}
        return self._cell("audit", seed, {}, inputs=inputs, needs={"probe": probe.id})

    def allocate(self, seed: int, audit: Cell) -> Cell:
        parameters = {**self._kept("allocation"), "shuffles": shuffles(self.study)}
        return self._cell("allocate", seed, parameters, needs={"audit": audit.id})

    def retrains(self, seed: int, allocate: Cell) -> list[Cell]:
        shared = self._kept("dtype", "target_modules", "alpha", "alpha_rule", "dropout", "training", "train_items")
        shared["init_rank"] = self.parameters.probe_rank
        return [
            self._cell(
                "retrain", seed, shared, arm=name, replicate=k if arm.replicates > 1 else None,
                inputs=self._inputs, needs={"allocate": allocate.id}, estimate=self._training,
            )
            for name, arm in self.study.arms.items() if name != PROBE
            for k in range(1, arm.replicates + 1)
        ]  # fmt: skip

    def _kept(self, *names: str) -> dict[str, Any]:
        known = identifying(self.parameters, LEFT_OUT)
        return {name: known[name] for name in names}

    @cached_property
    def _inputs(self) -> dict[str, str]:
        return {"model": content_id(self.parameters.model), "task": self.task.content_id()}

    def _cell(
        self, stage: str, seed: int, parameters: dict[str, Any], *, estimate: Estimate | None = None, **more: Any
    ) -> Cell:
        whole = self.parameters.model_dump(mode="json")
        return Cell(
            protocol=self.study.protocol,
            version=self.version,
            stage=stage,
            parameters=parameters,
            seed=seed,
            smoke=self.study.smoke,
            settings={dotted: _at(whole, dotted) for dotted in LEFT_OUT},
            estimate=estimate or Estimate(STAGE_SECONDS, 20_000),
            **more,
        )

    @cached_property
    def _training(self) -> Estimate:
        """Training costs 2N forward and 2N backward a token (frozen weights get no gradient), evaluation 2N."""
        device = find_device(self.study.resources.device)
        training, size = self.parameters.training, self._parameter_count()
        steps = training.steps * training.gradient_accumulation
        length = self.task.tokens_per_item
        items = self.task.count("test") + self.task.count("dev")
        flops = 4 * size * steps * training.batch_size * length + 2 * size * items * length
        batches = 2 * steps + items / self.parameters.evaluation_batch_size
        return Estimate(
            seconds=flops / device.flops_per_s + batches * device.step_overhead_s,
            disk_bytes=self._adapter_bytes() + items * BYTES_PER_ITEM,
            memory_bytes=self._memory(device, size, length),
        )

    def _memory(self, device: Device, size: int, length: int) -> int:
        bytes_per_weight = 4 if self.parameters.dtype == "float32" else 2
        tokens = self.parameters.training.batch_size * length
        width = sum(i for i, _ in self._linear_shapes().values()) / 7
        activations = ACTIVATION_BYTES_PER_TOKEN_AND_WIDTH * tokens * width
        return int(size * bytes_per_weight + activations + 4 * self._adapter_bytes())

    def _adapter_bytes(self) -> int:
        shapes = self._linear_shapes()
        targets = [s for name, s in shapes.items() if name.rpartition(".")[2] in self.parameters.target_modules]
        return 4 * self.parameters.probe_rank * sum(i + o for i, o in targets)

    def _parameter_count(self) -> int:
        try:
            return parameter_count(self.parameters.model)
        except ModelError:
            return 0  # not on this machine: the plan says what it can

    def _linear_shapes(self) -> dict[str, tuple[int, int]]:
        try:
            return linear_shapes(self.parameters.model)
        except ModelError:
            return {}


def _at(data: Any, dotted: str) -> Any:
    for key in dotted.split("."):
        data = data[key]
    return data
