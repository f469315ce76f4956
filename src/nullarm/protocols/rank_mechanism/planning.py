"""The cells of a rank-mechanism study: per seed probe → audit → allocate → one retrain per arm and replicate."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from nullarm.errors import ModelError
from nullarm.models.facts import linear_shapes, parameter_count
from nullarm.models.reference import content_id
from nullarm.models.tasks.base import Task
from nullarm.models.tasks.factory import make_task
from nullarm.protocols.rank_mechanism.arms import PROBE, SHUFFLED
from nullarm.protocols.rank_mechanism.module_names import layer_path
from nullarm.protocols.rank_mechanism.parameters import LEFT_OUT, RankMechanismParameters
from nullarm.sites.devices import find_device
from nullarm.study.identity import identifying
from nullarm.study.plan import Cell, Estimate
from nullarm.study.spec import Study

BYTES_PER_ITEM = 60
"""Of a row in the per-item table, compressed."""
ACTIVATION_BYTES_PER_TOKEN_AND_WIDTH = 34
"""Kept for the backward pass per token, layer and hidden unit in half precision (Korthikanti et al., 2205.05198, eq. 1,
without the quadratic term of attention, which fused kernels do not keep)."""
LOAD_BYTES_PER_S = 1e9
"""Weights from disk to device."""
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
        return self._cell("probe", seed, parameters, arm=PROBE, inputs=self._inputs, estimate=self._probing)

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
    def _probing(self) -> Estimate:
        """As any training; its adapter is kept, and the checkpoints of one cell at a time have to fit beside it."""
        transient = 3 * self.parameters.training.keep_checkpoints
        return replace(self._training, disk_bytes=self._training.disk_bytes + (1 + transient) * self._adapter_bytes())

    @cached_property
    def _training(self) -> Estimate:
        """2N forward and 2N backward a trained token (frozen weights get no gradient), 2N an evaluated one.

        Recomputed activations are 2N more; a task that generates takes a pass for every token of a batch.
        """
        device = find_device(self.study.resources.device)
        training, size = self.parameters.training, self._parameter_count()
        steps = training.steps * training.gradient_accumulation
        length, generated = self.task.tokens_per_item, self.task.tokens_generated
        items = self.task.count("test") + self.task.count("dev")
        trained = (6 if training.gradient_checkpointing else 4) * steps * training.batch_size * length
        flops = size * (trained + 2 * items * (length + generated))
        passes = 2 * steps + items / self.parameters.evaluation_batch_size * (1 + generated)
        return Estimate(
            seconds=self._weight_bytes(size) / LOAD_BYTES_PER_S
            + flops / device.flops_per_s
            + passes * device.step_overhead_s,
            disk_bytes=items * BYTES_PER_ITEM,
            memory_bytes=self._memory(size, length),
        )

    def _memory(self, size: int, length: int) -> int:
        """Weights, LoRA with gradient and two moments, and activations of a batch twice as long as the mean."""
        shapes = self._linear_shapes()
        layers = max(1, len({layer_path(name) for name in shapes}))
        tokens = 2 * self.parameters.training.batch_size * length
        width = sum(i for i, _ in shapes.values()) / 7
        kept = 2 + ACTIVATION_BYTES_PER_TOKEN_AND_WIDTH / layers  # the input of every layer, and one layer's all
        if not self.parameters.training.gradient_checkpointing:
            kept = ACTIVATION_BYTES_PER_TOKEN_AND_WIDTH
        return int(self._weight_bytes(size) + kept * tokens * width + 4 * self._adapter_bytes())

    def _weight_bytes(self, size: int) -> int:
        return size * (4 if self.parameters.dtype == "float32" else 2)

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
