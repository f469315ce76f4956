"""From the source's bench YAML to a nullarm study. What is not carried over is named; what cannot be is refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nullarm.errors import StudyError
from nullarm.models.tasks.glue import SUBSETS, Glue
from nullarm.protocols.rank_mechanism.arms import ARMS, AUDITED, LEGACY_NAMES, PROBE, SHUFFLED
from nullarm.protocols.rank_mechanism.bench import ALPHA, MARGIN
from nullarm.protocols.rank_mechanism.bench_source import BenchSource
from nullarm.protocols.translation import Translation, name_from
from nullarm.stats.design import Design
from nullarm.study.spec import FORMAT
from nullarm.study.strict_yaml import parse_file

ARM_OF = {legacy: arm for arm, legacy in LEGACY_NAMES.items()} | {arm: arm for arm in ARMS}
DEFAULT_VARIANTS = ("per_layer", "per_layer_shuffled", "uniform_median", "uniform_p90")
DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
PRECISIONS = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
COMPRESSION_MARGIN = 0.02
"""The source's tolerance, used where the file sets none."""
PROFILES: Mapping[str, Mapping[str, Any]] = {
    "gsm8k_causal_lm": {"head": "causal_lm", "steps": 1200, "learning_rate": 3e-4, "batch_size": 8},
    "seqcls_glue": {"head": "seqcls", "steps": 500, "learning_rate": 5e-5, "batch_size": 8, "weight_decay": 0.01,
                    "warmup_ratio": 0.1},
}  # fmt: skip
"""The source's task profiles: the head they need, and how they train where the file does not say."""


def is_bench_yaml(data: object) -> bool:
    """Whether parsed YAML looks like the source's bench file rather than a study."""
    return isinstance(data, dict) and "protocol" not in data and {"model", "task", "lora"} <= data.keys()


def translate(path: Path) -> Translation:
    """Translate a bench YAML.

    Args:
        path: The file.

    Raises:
        StudyError: The file cannot be read, or asks for something that a study cannot say.
    """
    data = parse_file(path).data
    if not is_bench_yaml(data):
        raise StudyError(f"{path} is no bench file", valid="a mapping with model, task, lora and compression")
    source = BenchSource(str(path), data)
    seeds = _seeds(source)
    arms = _arms(source)
    parameters = _parameters(source)
    study: dict[str, Any] = {
        "format": FORMAT,
        "name": name_from(path.stem, "bench"),
        "question": f"Do audit-guided per-layer LoRA ranks beat the same ranks shuffled, on {parameters['model']}?",
        "protocol": "rank_mechanism",
        "seeds": seeds,
        "factors": {"ranks": {arm: _arm(arm) for arm in arms}},
        "parameters": parameters,
        "analysis": _analysis(source, arms),
        "resources": _resources(source),
    }
    if SHUFFLED in arms:
        study["factors"]["ranks"][SHUFFLED]["replicates"] = _shuffles(len(seeds), len(study["analysis"]["contrasts"]))
    if smoke := _smoke(source, seeds):
        study["profiles"] = {"quick": smoke}
    return Translation(study, source.not_carried())


def _seeds(source: BenchSource) -> list[int]:
    several, one = source.take("compression.seeds"), source.peek("seed")
    if several is None:
        source.take("seed")
        several = [42 if one is None else one]
    if not isinstance(several, list) or not all(type(seed) is int for seed in several):
        raise source.refusal("compression.seeds", several, "a list of whole numbers")
    return several


def _arms(source: BenchSource) -> list[str]:
    variants = source.take("compression.variants_to_test", list(DEFAULT_VARIANTS))
    if not isinstance(variants, list) or not variants:
        raise source.refusal("compression.variants_to_test", variants, "a list of variants")
    for variant in variants:
        if variant not in ARM_OF:
            raise source.refusal("compression.variants_to_test", variant, sorted(ARM_OF))
    return list(dict.fromkeys([PROBE, *(ARM_OF[variant] for variant in variants)]))


def _arm(arm: str) -> dict[str, Any]:
    if arm == PROBE:
        return {"role": "reference"}
    return {} if arm == AUDITED else {"role": "control", "null": f"the audited map does no better than {arm}"}


def _parameters(source: BenchSource) -> dict[str, Any]:
    profile = source.choose("task.profile", None, {name: name for name in PROFILES})
    head = PROFILES[profile]["head"]
    source.choose("model.type", head, {head: head})
    dtype = source.choose("model.torch_dtype", "float32", {name: name for name in PRECISIONS} | DTYPES)
    task = _task(source, profile)
    rank = source.take("lora.probe_r", 64)
    source.note(
        "lora.alpha",
        "kept, but under alpha_rule alpha=r every module of every arm has scale 1; "
        f"alpha_rule fixed is the source's, with which a module of rank 1 trains at {rank} times the probe's scale",
    )
    if (samples := source.peek("train.train_samples")) is not None:
        source.note(
            "train.train_samples", f"{samples} is the most: the dev split is taken from the training rows first"
        )
    parameters = {
        "model": source.take("model.name"),
        "dtype": dtype,
        "task": task,
        "probe_rank": rank,
        "alpha": source.take("lora.alpha", 32),
        "alpha_rule": "alpha=r",
        "dropout": source.take("lora.dropout", 0.0),
        "target_modules": _targets(source),
        "training": _training(source, profile, PRECISIONS[dtype]),
        "train_items": source.take("train.train_samples"),
        "evaluation_batch_size": source.take("train.per_device_eval_batch_size", 16),
        "gate": _gate(source, task),
        "allocation": {"allowed_ranks": source.take("compression.allowed_ranks")},
    }
    if parameters["allocation"]["allowed_ranks"] is None:
        del parameters["allocation"]
    return {key: value for key, value in parameters.items() if value is not None}


def _task(source: BenchSource, profile: str) -> dict[str, Any]:
    task: dict[str, Any]
    if profile == "gsm8k_causal_lm":
        source.choose("task.dataset", "gsm8k", dict.fromkeys(("gsm8k", "openai/gsm8k"), "gsm8k"))
        source.choose("task.subset", "main", {"main": "main"})
        source.choose("task.generation.do_sample", False, {False: False})
        source.choose("task.generation.num_beams", 1, {1: 1})
        task = {"kind": "gsm8k", "max_new_tokens": source.take("task.generation.max_new_tokens")}
    else:
        source.choose("task.dataset", "glue", dict.fromkeys(("glue", "nyu-mll/glue"), "glue"))
        task = {"kind": "glue", "subset": source.choose("task.subset", None, {name: name for name in SUBSETS})}
    most, wanted = source.take("task.eval_max_samples"), source.take("train.eval_samples")
    task["test_items"] = min((n for n in (most, wanted) if isinstance(n, int)), default=None)
    return {key: value for key, value in task.items() if value is not None}


def _targets(source: BenchSource) -> list[str] | None:
    targets = source.take("lora.target_modules")
    if targets is not None and not isinstance(targets, list):
        raise source.refusal("lora.target_modules", targets, "a list of the last names of modules, such as q_proj")
    return targets


def _training(source: BenchSource, profile: str, precision: str) -> dict[str, Any]:
    own = PROFILES[profile]
    training = {
        "steps": source.take("train.max_steps", own["steps"]),
        "batch_size": source.take("train.per_device_train_batch_size", own["batch_size"]),
        "learning_rate": source.take("train.learning_rate", own["learning_rate"]),
        "weight_decay": source.take("train.weight_decay", own.get("weight_decay")),
        "warmup_ratio": source.take("train.warmup_ratio", own.get("warmup_ratio")),
        "precision": precision,
        "gradient_checkpointing": source.take("model.gradient_checkpointing"),
        "gradient_accumulation": source.take("train.gradient_accumulation_steps"),
        "checkpoint_every": source.take("train.save_steps"),
    }
    return {key: value for key, value in training.items() if value is not None}


def _gate(source: BenchSource, task: Mapping[str, Any]) -> dict[str, Any] | None:
    """The file's gate; for GLUE the source's own where the file sets none."""
    own = Glue(task["subset"]) if task["kind"] == "glue" else None
    least = source.take("task.probe_gate.min_value", own.facts.gate if own else None)
    metric = _metric(source, "task.probe_gate.metric", own.primary if own else "accuracy")
    return None if least is None else {"metric": metric, "min_value": least}


def _metric(source: BenchSource, key: str, default: str = "accuracy") -> str:
    """Every metric of the source that has a value for each item is accuracy under one of its names."""
    names = ("accuracy", "eval_accuracy", "eval/accuracy", "exact_match", "eval_exact_match", "eval/exact_match")
    metric: str = source.choose(key, default, {**dict.fromkeys(names, "accuracy"), default: default})
    return metric


def _analysis(source: BenchSource, arms: list[str]) -> dict[str, Any]:
    compressed = AUDITED if AUDITED in arms else arms[1]
    contrasts: list[dict[str, Any]] = [
        {"name": "compression", "treatment": compressed, "control": PROBE, "kind": "non_inferiority",
         "margin": source.take("compression.acc_tolerance", COMPRESSION_MARGIN)},
    ]  # fmt: skip
    if {AUDITED, SHUFFLED} <= set(arms):
        contrasts.insert(0, {"name": "mechanism", "treatment": AUDITED, "control": SHUFFLED,
                             "test": "within_seed_randomisation"})  # fmt: skip
    contrasts[0]["primary"] = True
    return {"metric": _metric(source, "task.metric"), "alpha": ALPHA, "margin": MARGIN, "contrasts": contrasts}


def _shuffles(seeds: int, family: int) -> int:
    """The fewest shuffles per seed with which the randomisation test can reach α under Holm; 1 where none can."""
    designs = (Design(seeds, controls, ALPHA, family=family) for controls in range(1, 1_000))
    return next((design.controls for design in designs if design.fault() is None), 1)


def _resources(source: BenchSource) -> dict[str, Any]:
    """One GPU for `cuda`; time and cost are estimated for the source's kind, wherever the plan is made."""
    on_gpu = str(source.take("runtime.device", "cuda")).startswith("cuda")
    return {"gpus": 1, "device": "rtx4090"} if on_gpu else {"gpus": 0}


def _smoke(source: BenchSource, seeds: list[int]) -> dict[str, Any]:
    steps, train, evaluation = (
        source.take(f"runtime.smoke_{key}") for key in ("max_steps", "train_samples", "eval_samples")
    )
    parameters = {
        "training": {"steps": steps} if steps is not None else None,
        "train_items": train,
        "task": {"test_items": evaluation} if evaluation is not None else None,
    }
    known = {key: value for key, value in parameters.items() if value is not None}
    return {"smoke": True, "seeds": seeds[:1], "parameters": {**known, "gate": None}} if known else {}
