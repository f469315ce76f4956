from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from nullarm.errors import StudyError
from nullarm.models.tasks.factory import make_task
from nullarm.protocols.rank_mechanism.bench_yaml import is_bench_yaml, translate
from nullarm.protocols.rank_mechanism.parameters import RankMechanismParameters
from nullarm.protocols.translation import Translation
from nullarm.stats.design import Design
from nullarm.study.load import load_study, merged
from nullarm.study.spec import Study
from nullarm.study.validate import validated

BENCH: dict[str, Any] = {
    "bench_version": "0.1",
    "run_type": "mechanism_test",
    "model": {
        "name": "mistralai/Mistral-7B-v0.1", "type": "causal_lm", "torch_dtype": "bfloat16",
        "gradient_checkpointing": True, "use_cache": False,
    },
    "task": {
        "dataset": "gsm8k", "subset": "main", "profile": "gsm8k_causal_lm", "metric": "exact_match",
        "eval_max_samples": 500, "generation": {"max_new_tokens": 256, "do_sample": False, "num_beams": 1},
        "probe_gate": {"metric": "eval_exact_match", "min_value": 0.15},
    },
    "train": {
        "seed": 42, "max_steps": 1200, "learning_rate": 3e-4, "weight_decay": 0.0, "warmup_ratio": 0.03,
        "per_device_train_batch_size": 8, "per_device_eval_batch_size": 16, "gradient_accumulation_steps": 2,
        "logging_steps": 10, "eval_steps": 200, "save_steps": 150, "train_samples": 7473, "eval_samples": 500,
    },
    "lora": {"probe_r": 64, "alpha": 32, "dropout": 0.1, "target_modules": ["q_proj", "v_proj"]},
    "compression": {
        "allowed_ranks": [1, 2, 4, 8, 16, 32, 64], "acc_tolerance": 0.03, "seeds": [42, 43, 44],
        "variants_to_test": ["per_layer", "per_layer_shuffled", "uniform_median", "uniform_p90"],
    },
    "audit": {"top_k": 5},
    "runtime": {
        "device": "cuda", "smoke_max_steps": 20, "smoke_train_samples": 64, "smoke_eval_samples": 32,
        "keep_adapter_weights": False, "keep_checkpoints": False,
    },
}  # fmt: skip
GLUE: dict[str, Any] = {
    "seed": 7,
    "model": {"name": "distilbert/distilbert-base-uncased", "type": "seqcls"},
    "task": {"dataset": "glue", "subset": "sst2", "profile": "seqcls_glue", "metric": "accuracy"},
    "lora": {"probe_r": 16, "alpha": 16, "target_modules": ["q_lin", "v_lin"]},
    "runtime": {"device": "cpu"},
}


def translated(tmp_path: Path, data: dict[str, Any]) -> Translation:
    path = tmp_path / "my bench.yaml"
    path.write_text(yaml.safe_dump(data), "utf-8")
    return translate(path)


def checked(translation: Translation) -> tuple[Study, RankMechanismParameters]:
    study = validated(Study, translation.study, "translated")
    return study, validated(RankMechanismParameters, study.parameters, "translated")


def test_the_mechanism_test_becomes_a_study(tmp_path: Path) -> None:
    study, parameters = checked(translated(tmp_path, BENCH))
    assert study.name == "my_bench"
    assert study.seeds == (42, 43, 44)
    assert list(study.arms) == ["probe", "audited", "shuffled", "uniform_median", "uniform_p90"]
    assert parameters.model == "mistralai/Mistral-7B-v0.1"
    assert (parameters.dtype, parameters.training.precision) == ("bfloat16", "bf16")
    assert parameters.task == {"kind": "gsm8k", "max_new_tokens": 256, "test_items": 500}
    assert (parameters.probe_rank, parameters.alpha, parameters.dropout) == (64, 32, 0.1)
    assert parameters.target_modules == ("q_proj", "v_proj")
    training = parameters.training
    assert (training.steps, training.batch_size, training.learning_rate, training.warmup_ratio) == (1200, 8, 3e-4, 0.03)
    assert (training.gradient_accumulation, training.gradient_checkpointing, training.checkpoint_every) == (
        2,
        True,
        150,
    )
    assert (parameters.train_items, parameters.evaluation_batch_size) == (7473, 16)
    assert parameters.gate is not None
    assert (parameters.gate.metric, parameters.gate.min_value) == ("accuracy", 0.15)
    assert parameters.allocation.allowed_ranks == (1, 2, 4, 8, 16, 32, 64)
    mechanism, compression = study.analysis.contrasts
    assert (mechanism.treatment, mechanism.control, mechanism.primary) == ("audited", "shuffled", True)
    assert (compression.kind, compression.margin) == ("non_inferiority", 0.03)
    assert (study.resources.gpus, study.resources.device) == (1, "rtx4090")


def test_there_are_as_many_shuffles_as_alpha_needs(tmp_path: Path) -> None:
    study, _ = checked(translated(tmp_path, BENCH))
    count = study.arms["shuffled"].replicates
    assert Design(3, count, 0.05, family=2).fault() is None
    assert Design(3, count - 1, 0.05, family=2).fault() is not None


def test_what_is_not_carried_is_named_with_its_reason(tmp_path: Path) -> None:
    data = merged(BENCH, {"seed": 1, "train": {"optimizer": "lion"}})
    translation = translated(tmp_path, data)
    assert set(translation.not_carried) == {
        "lora.alpha", "train.train_samples",
        "bench_version", "run_type", "seed", "model.use_cache", "train.seed", "train.logging_steps",
        "train.eval_steps", "train.optimizer", "audit.top_k", "runtime.keep_adapter_weights",
        "runtime.keep_checkpoints",
    }  # fmt: skip
    assert translation.not_carried["train.optimizer"] == "nullarm has no such setting"
    assert all(translation.not_carried.values())


def test_the_text_is_a_study_file_headed_by_what_is_missing(tmp_path: Path) -> None:
    translation = translated(tmp_path, BENCH)
    path = tmp_path / "study.yaml"
    path.write_text(translation.text("bench.yaml"), "utf-8")
    assert "# not carried: train.eval_steps: nothing is evaluated during training" in path.read_text("utf-8")
    study = load_study(path, environment={})
    assert study.seeds == (42, 43, 44)
    smoke = load_study(path, profile="quick", environment={})
    assert (smoke.smoke, smoke.seeds) == (True, (42,))
    assert smoke.parameters["training"]["steps"] == 20
    assert smoke.parameters["train_items"] == 64
    assert smoke.parameters["task"]["test_items"] == 32
    assert smoke.parameters["gate"] is None


def test_a_glue_profile_brings_the_sources_defaults(tmp_path: Path) -> None:
    study, parameters = checked(translated(tmp_path, GLUE))
    assert study.seeds == (7,)
    assert parameters.task == {"kind": "glue", "subset": "sst2"}
    assert parameters.gate is not None
    assert (parameters.gate.metric, parameters.gate.min_value) == ("accuracy", 0.75)
    training = parameters.training
    assert (training.steps, training.batch_size, training.learning_rate) == (500, 8, 5e-5)
    assert (training.weight_decay, training.warmup_ratio) == (0.01, 0.1)
    assert study.resources.gpus == 0
    assert study.profiles == {}


def test_the_similarity_of_stsb_is_gated_by_its_correlation(tmp_path: Path) -> None:
    _, parameters = checked(translated(tmp_path, merged(GLUE, {"task": {"subset": "stsb"}})))
    assert parameters.gate is not None
    assert (parameters.gate.metric, parameters.gate.min_value) == ("pearson", 0.8)


@pytest.mark.parametrize("data", [BENCH, GLUE])
def test_the_task_exists_with_these_settings(tmp_path: Path, data: dict[str, Any]) -> None:
    _, parameters = checked(translated(tmp_path, data))
    task = make_task(parameters.task)
    assert task.name == parameters.task["kind"]
    assert task.count("test") == parameters.task.get("test_items", 872)


def test_without_the_shuffled_variant_compression_is_the_question(tmp_path: Path) -> None:
    study, _ = checked(translated(tmp_path, merged(GLUE, {"compression": {"variants_to_test": ["uniform_median"]}})))
    assert [c.name for c in study.analysis.contrasts] == ["compression"]
    assert study.analysis.primary.treatment == "uniform_median"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"task": {"profile": "gsm9k"}}, "task.profile cannot be carried .* got 'gsm9k'; valid: gsm8k_causal_lm"),
        ({"model": {"type": "seqcls"}}, "model.type cannot be carried into a study; got 'seqcls'; valid: causal_lm"),
        ({"model": {"torch_dtype": "auto"}}, "model.torch_dtype cannot be carried .* got 'auto'; valid: bfloat16"),
        ({"task": {"generation": {"do_sample": True}}}, "task.generation.do_sample .* got True; valid: False"),
        ({"task": {"generation": {"num_beams": 4}}}, "task.generation.num_beams .* got 4; valid: 1"),
        ({"task": {"dataset": "squad"}}, "task.dataset cannot be carried .* got 'squad'"),
        ({"task": {"subset": "socratic"}}, "task.subset .* got 'socratic'; valid: main"),
        ({"task": {"metric": "f1"}}, "task.metric cannot be carried .* got 'f1'; valid: accuracy"),
        ({"compression": {"variants_to_test": ["per_layre"]}}, r"did you mean 'per_layer'\?"),
        ({"compression": {"seeds": "42"}}, "compression.seeds .* valid: a list of whole numbers"),
        ({"lora": {"target_modules": "all-linear"}}, "lora.target_modules .* got 'all-linear'; valid: a list"),
    ],
)  # fmt: skip
def test_what_cannot_be_carried_is_refused(tmp_path: Path, changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(StudyError, match=problem):
        translated(tmp_path, merged(BENCH, changes))


def test_only_a_bench_file_is_translated(tmp_path: Path) -> None:
    assert is_bench_yaml(BENCH)
    assert not is_bench_yaml({**BENCH, "protocol": "rank_mechanism"})
    assert not is_bench_yaml([1])
    path = tmp_path / "other.yaml"
    path.write_text("format: 1\nname: x\n", "utf-8")
    with pytest.raises(StudyError, match="is no bench file; valid: a mapping with model, task, lora"):
        translate(path)
    with pytest.raises(StudyError, match="cannot read study file"):
        translate(tmp_path / "missing.yaml")
