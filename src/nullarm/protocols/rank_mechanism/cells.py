"""The work of each stage. Runs in a worker; imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from nullarm.errors import InvalidResult, Preempted
from nullarm.models.facts import weights_directory
from nullarm.models.load import load_causal_lm, load_sequence_classifier
from nullarm.models.tasks.base import ItemResult, Split, Task
from nullarm.models.tasks.evaluate import evaluate
from nullarm.models.tasks.factory import make_task
from nullarm.protocols.base import CellContext, CellResult
from nullarm.protocols.rank_mechanism.adalora import build_adalora
from nullarm.protocols.rank_mechanism.allocate import AllocationPolicy, allocate, lora_parameters
from nullarm.protocols.rank_mechanism.arms import ADALORA, AUDITED, EVA, REPLICATE, map_key
from nullarm.protocols.rank_mechanism.audit import audit_adapter
from nullarm.protocols.rank_mechanism.eva import build_eva
from nullarm.protocols.rank_mechanism.lora import TaskType, build_lora, final_ranks, save_adapter, target_modules
from nullarm.protocols.rank_mechanism.ranks import ModuleShape, RankMap
from nullarm.protocols.rank_mechanism.spectra import Audit
from nullarm.study.identity import content_hash
from nullarm.training.batches import Batches
from nullarm.training.loop import FitResult, StepHook, fit
from nullarm.training.settings import TrainSettings

SLICE_ITEMS = 200
"""Items of one evaluation chunk."""
EVA_BATCHES = 16
"""Training batches that EVA looks at."""


@dataclass(frozen=True)
class _Adapted:
    """A model with its adapter, the modules that were to be adapted, and what has to happen after each step."""

    model: Any
    modules: list[ModuleShape]
    step_hook: StepHook | None = None

    @property
    def ranks(self) -> RankMap:
        """Rank of every target module as it is now."""
        return final_ranks(self.model, self.modules)


def run_probe(context: CellContext) -> CellResult:
    """Train the probe, look at the gate on dev, evaluate on test, hand on the adapter."""
    cell = context.cell
    model, tokenizer, task = _load(context)
    modules = target_modules(model, cell.parameters["target_modules"])
    adapted = _lora(context, model, task, {m.name: int(cell.parameters["rank"]) for m in modules}, cell.seed)
    fitted = _fit(context, adapted, tokenizer, task)
    metrics = {**_training_metrics(fitted, adapted), **_score(context, task, adapted.model, tokenizer, "dev")}
    name = cell.inputs["model"]
    context.writer.directory_artefact(
        "adapter", lambda directory: save_adapter(adapted.model, directory, base_name=name)
    )
    context.writer.json_artefact("ranks", adapted.ranks)
    if (reason := _gate_failure(cell.parameters["gate"], metrics)) is not None:
        return CellResult(metrics, "undertrained", reason)
    metrics |= _score(context, task, adapted.model, tokenizer, "test")
    return CellResult(metrics)


def run_audit(context: CellContext) -> CellResult:
    """Spectra of the probe's final adapter, with the base weights when they are files on this machine."""
    base = weights_directory(str(context.cell.settings["model"]))
    audit = audit_adapter(context.needs["probe"].artefact("adapter"), base=base)
    context.writer.json_artefact("audit", audit.to_json())
    return CellResult({"modules": len(audit.modules)})


def run_allocate(context: CellContext) -> CellResult:
    """Rank maps of every arm, or the reason why this audit admits no test."""
    cell = context.cell
    audit = Audit.from_json(context.needs["audit"].json("audit"))
    policy = AllocationPolicy(**_tuples(cell.parameters["allocation"]))
    rng = np.random.default_rng([cell.seed, 0x5EED])
    try:
        allocation = allocate(
            audit.spectra, audit.shapes, audit.ranks, policy, shuffles=int(cell.parameters["shuffles"]), rng=rng
        )
    except InvalidResult as error:
        return CellResult({}, "invalid", str(error))
    context.writer.json_artefact("allocation", allocation.to_json())
    return CellResult({"distinct_ranks": len(set(allocation.maps[AUDITED].values())), **_counts(allocation.parameters)})


def run_retrain(context: CellContext) -> CellResult:
    """Train an arm from scratch with its ranks and evaluate it."""
    model, tokenizer, task = _load(context)
    allocation = context.needs["allocate"].json("allocation")
    adapted = _adapt(context, model, tokenizer, task, allocation)
    fitted = _fit(context, adapted, tokenizer, task)
    metrics = {
        **_training_metrics(fitted, adapted),
        **_score(context, task, adapted.model, tokenizer, "dev"),
        **_score(context, task, adapted.model, tokenizer, "test"),
    }
    context.writer.json_artefact("ranks", adapted.ranks)
    trained = lora_parameters(adapted.ranks, adapted.modules)
    metrics["parameters_over_audited"] = trained / allocation["parameters"][AUDITED]
    return CellResult(metrics)


def _adapt(context: CellContext, model: Any, tokenizer: Any, task: Task, allocation: Mapping[str, Any]) -> _Adapted:
    """The model with the arm's adapter."""
    cell = context.cell
    modules = target_modules(model, cell.parameters["target_modules"])
    if cell.arm not in (EVA, ADALORA):
        planned = allocation["maps"][map_key(str(cell.arm), cell.replicate)]
        seed = cell.seed if cell.arm != REPLICATE else int(content_hash([cell.seed, cell.replicate or 1])[:8], 16)
        return _lora(context, model, task, {name: int(rank) for name, rank in planned.items()}, seed)
    shared = {
        "modules": modules,
        "target_parameters": int(allocation["parameters"][AUDITED]),
        "alpha_rule": cell.parameters["alpha_rule"],
        "alpha": cell.parameters["alpha"],
        "dropout": cell.parameters["dropout"],
        "task_type": _task_type(task),
    }
    if cell.arm == ADALORA:
        steps = int(cell.parameters["training"]["steps"])
        built, hook = build_adalora(model, total_steps=steps, seed=cell.seed, **shared)
        return _Adapted(built, modules, hook)
    source = _batches(context, task, tokenizer)
    batches = [{k: v.to(model.device) for k, v in source.batch(i).items()} for i in range(EVA_BATCHES)]
    return _Adapted(build_eva(model, batches, **shared), modules)


def _lora(context: CellContext, model: Any, task: Task, ranks: Mapping[str, int], seed: int) -> _Adapted:
    parameters = context.cell.parameters
    modules = target_modules(model, parameters["target_modules"])
    built = build_lora(
        model,
        ranks=ranks,
        alpha_rule=parameters["alpha_rule"],
        alpha=parameters["alpha"],
        dropout=parameters["dropout"],
        seed=seed,
        init_seed_rank=int(parameters["rank"] if context.cell.stage == "probe" else parameters["init_rank"]),
        task_type=_task_type(task),
    )
    return _Adapted(built, modules)


def _load(context: CellContext) -> tuple[Any, Any, Task]:
    cell = context.cell
    task = make_task(cell.settings["task"])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name, dtype = str(cell.settings["model"]), str(cell.parameters["dtype"])
    if task.head == "seqcls":
        model, tokenizer = load_sequence_classifier(name, task.num_labels, seed=cell.seed, dtype=dtype, device=device)
    else:
        model, tokenizer = load_causal_lm(name, dtype=dtype, device=device)
    return model, tokenizer, task


def _batches(context: CellContext, task: Task, tokenizer: Any) -> Batches:
    items = task.items("train")[: context.cell.parameters["train_items"]]
    return Batches(
        task.encode_training(tokenizer, items),
        batch_size=int(context.cell.parameters["training"]["batch_size"]),
        seed=context.cell.seed,
        pad_id=tokenizer.pad_token_id,
        labels="item" if task.head == "seqcls" else "tokens",
    )


def _fit(context: CellContext, adapted: _Adapted, tokenizer: Any, task: Task) -> FitResult:
    cell = context.cell
    outside = {name.partition(".")[2]: v for name, v in cell.settings.items() if name.startswith("training.")}
    settings = TrainSettings(**cell.parameters["training"], **outside)
    return fit(
        adapted.model,
        _batches(context, task, tokenizer),
        settings,
        directory=context.writer.paths.scratch / "checkpoints",
        fingerprint=cell.id,
        seed=cell.seed,
        should_stop=context.should_stop,
        on_progress=lambda step, loss: context.progress(step, settings.steps, f"steps, loss {loss:.3f}"),
        extra_step=adapted.step_hook,
    )


def _score(context: CellContext, task: Task, model: Any, tokenizer: Any, split: Split) -> dict[str, float]:
    """Evaluate a split in chunks; test results become the cell's `items`."""
    items = task.items(split)
    results: list[ItemResult] = []
    for start in range(0, len(items), SLICE_ITEMS):
        if context.should_stop():
            raise Preempted(f"asked to stop after {start} of {len(items)} {split} items")
        part = items[start : start + SLICE_ITEMS]

        def make(part: Any = part) -> pa.Table:
            size = int(context.cell.settings["evaluation_batch_size"])
            return _table(evaluate(task, model, tokenizer, part, batch_size=size))

        results += _results(context.writer.table_chunk(f"{split}-{start:06d}", make))
        context.progress(len(results), len(items), f"{split} items")
    if split == "test":
        context.writer.table_artefact("items", _table(results))
    return {f"{split}_{name}": value for name, value in task.metrics(results).items()}


def _table(results: list[ItemResult]) -> pa.Table:
    """Per-item measurements; the float columns are metrics of which more is better."""
    return pa.table(
        {
            "item": pa.array([r.item_id for r in results], pa.string()),
            "cluster": pa.array([r.cluster for r in results], pa.string()),
            "accuracy": pa.array([float(r.correct) for r in results], pa.float64()),
            "score": pa.array([r.score for r in results], pa.float64()),
            "log_likelihood": pa.array([-r.loss for r in results], pa.float64()),
            "prediction": pa.array([r.prediction for r in results], pa.string()),
            "target": pa.array([r.target for r in results], pa.string()),
        }
    )


def _results(table: pa.Table) -> list[ItemResult]:
    return [
        ItemResult(
            row["item"], row["cluster"], bool(row["accuracy"]), -row["log_likelihood"], row["score"],
            row["prediction"], row["target"],
        )
        for row in table.to_pylist()
    ]  # fmt: skip


def _training_metrics(fitted: FitResult, adapted: _Adapted) -> dict[str, float | int | None]:
    return {
        "train_loss": float(np.mean(fitted.losses[-20:])),
        "steps": fitted.steps,
        "train_tokens": fitted.tokens,
        "lora_parameters": lora_parameters(adapted.ranks, adapted.modules),
    }


def _gate_failure(gate: Mapping[str, Any] | None, metrics: Mapping[str, float | int | None]) -> str | None:
    if gate is None:
        return None
    value = metrics.get(f"dev_{gate['metric']}")
    if value is None:
        known = sorted(name.removeprefix("dev_") for name in metrics if name.startswith("dev_"))
        raise InvalidResult(f"the task has no metric {gate['metric']!r} for the gate", valid=known)
    if value >= gate["min_value"]:
        return None
    return f"UNDERTRAINED: the probe's dev {gate['metric']} is {value:.4f}, the gate asks for {gate['min_value']:.4f}"


def _task_type(task: Task) -> TaskType:
    return "SEQ_CLS" if task.head == "seqcls" else "CAUSAL_LM"


def _counts(parameters: Mapping[str, int]) -> dict[str, int]:
    return {f"parameters_{arm}": count for arm, count in parameters.items()}


def _tuples(data: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
