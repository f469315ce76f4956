from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from nullarm.errors import ModelError, StudyError
from nullarm.protocols.residual.parameters import ResidualParameters
from nullarm.protocols.residual.protocol import Residual
from nullarm.protocols.residual.reading.prompt_file import read_prompts
from nullarm.protocols.residual.runbook.config import is_compare_config, translate
from nullarm.protocols.translation import Translation
from nullarm.study.load import load_study
from nullarm.study.spec import Study
from nullarm.study.strict_yaml import parse_file
from nullarm.study.validate import validated

ROOT = Path(__file__).parents[4]
PAIR: dict[str, Any] = {"base_model": "builtin:world", "sft_model": "random:tiny-qwen2@1", "prompts": ["one", "two"]}
SWEEP: dict[str, Any] = {
    "prompts": ["one"],
    "model_sweep": [
        {"name": "small", "base_model": "Qwen/Qwen2.5-0.5B", "sft_model": "Qwen/Qwen2.5-0.5B-Instruct"},
        {"name": "large", "base_model": "Qwen/Qwen2.5-7B", "sft_model": "Qwen/Qwen2.5-7B-Instruct", "dtype": "fp16",
         "tokenizer": "Qwen/Qwen2.5-7B", "estimated_vram_gb": 39, "notes": "slow"},
    ],
}  # fmt: skip


def written(tmp_path: Path, block: Any, **outside: Any) -> Path:
    path = tmp_path / "my config.yaml"
    path.write_text(yaml.safe_dump({"residual_compare": block, **outside}, allow_unicode=True), "utf-8")
    return path


def translated(tmp_path: Path, block: Any, environment: dict[str, str] | None = None) -> Translation:
    return translate(written(tmp_path, block), environment or {})


def checked(translation: Translation) -> tuple[Study, ResidualParameters]:
    study = validated(Study, translation.study, "translated")
    return study, validated(ResidualParameters, study.parameters, "translated")


def test_every_pair_of_a_sweep_is_an_arm_with_a_contrast_of_its_own(tmp_path: Path) -> None:
    study, parameters = checked(translated(tmp_path, SWEEP))
    assert study.name == "my_config"
    assert list(study.arms) == ["same_model", "small", "large"]
    assert (study.arms["same_model"].role, study.arms["same_model"].null) == (
        "control", "a model does not differ from itself",
    )  # fmt: skip
    assert parameters.pairs["same_model"].base == parameters.pairs["same_model"].sft == "Qwen/Qwen2.5-0.5B"
    large = parameters.pairs["large"]
    assert (large.sft, large.tokenizer, large.dtype, large.notes) == (
        "Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-7B", "float16", "slow",
    )  # fmt: skip
    analysis = study.analysis
    assert (analysis.metric, analysis.margin, analysis.incomplete) == ("js", 0.01, "drop_seed")
    assert [(c.treatment, c.control, c.test, c.primary) for c in analysis.contrasts] == [
        ("small", "same_model", "paired_items", True), ("large", "same_model", "paired_items", False),
    ]  # fmt: skip
    assert Residual().design(study, Residual().plan(study)).refusals == ()


def test_a_single_pair_is_named_after_its_fine_tuned_model(tmp_path: Path) -> None:
    study, parameters = checked(translated(tmp_path, PAIR))
    assert (study.name, list(study.arms)) == ("my_config-tiny-qwen2", ["same_model", "tiny-qwen2"])
    assert parameters.prompts == ("one", "two")
    assert not parameters.normalize_length
    assert parameters.dtype == "float32"
    hub, _ = checked(translated(tmp_path, {**PAIR, "sft_model": "Qwen/Qwen2.5-0.5B-Instruct@main"}))
    assert "Qwen2.5-0.5B-Instruct" in hub.arms


def test_every_key_that_a_study_has_is_carried(tmp_path: Path) -> None:
    block = {
        **PAIR,
        "tokenizer": "builtin:world",
        "device": "cuda",
        "dtype": "bf16",
        "top_k": 7,
        "prompt_variants": ["identity", "dual_channel"],
        "prompt_variant_options": {"dual_channel": {"order": "sft_first"}},
        "tracked_token_ids": [3],
        "tracked_token_strings": ["ĠYes"],
        "interesting_token_map": {"eos": "<|endoftext|>"},
        "tokenizer_kwargs": {"use_fast": True},
        "model_kwargs": {"attn_implementation": "eager"},
        "embedding_variants": [
            {"name": "native", "base": {}, "sft": {}},
            {"name": "swapped", "base": {"embedding_source": "sft"}, "sft": {"unembedding_source": "base"}},
        ],
        "multi_pass": {"enabled": False, "runs": [], "pairwise_differences": []},
        "prompt_file": None,
    }
    translation = translated(tmp_path, block)
    study, parameters = checked(translation)
    assert translation.not_carried == {}
    assert parameters.pairs["tiny-qwen2"].tokenizer == parameters.pairs["same_model"].tokenizer == "builtin:world"
    assert (study.resources.gpus, study.resources.device) == (1, "h200")
    assert (parameters.dtype, parameters.top_k) == ("bfloat16", 7)
    assert parameters.prompt_variants == ("identity", "dual_channel")
    assert parameters.prompt_variant_options == {"dual_channel": {"order": "sft_first"}}
    tracked = parameters.tracked
    assert (tracked.ids, tracked.strings, tracked.named) == ((3,), ("ĠYes",), {"eos": "<|endoftext|>"})
    assert parameters.tokenizer_kwargs == {"use_fast": True}
    assert parameters.model_kwargs["attn_implementation"] == "eager"
    assert [c.name for c in parameters.passes().comparisons] == ["native", "swapped"]
    assert not parameters.multi_pass.enabled


def test_the_factorial_is_carried_and_takes_the_place_of_embedding_variants(tmp_path: Path) -> None:
    block = {
        **PAIR,
        "multi_pass": {
            "enabled": True,
            "runs": [{"name": "BB", "model": "base"}, {"name": "BS", "model": "sft", "embedding_source": "base"}],
            "pairwise_differences": [["BB", "BS"]],
        },
        "embedding_variants": [{"name": "native"}],
    }
    translation = translated(tmp_path, block)
    _, parameters = checked(translation)
    assert [c.name for c in parameters.passes().comparisons] == ["BB-BS"]
    assert "multi_pass names the runs" in translation.not_carried["residual_compare.embedding_variants"]


def test_what_is_not_carried_is_named_with_its_reason(tmp_path: Path) -> None:
    local_run = {
        "enabled": True, "min_vram_gb": 20, "require_gpu_name_substring": "4090", "cuda_device_index": 1,
        "allowed_pairs": [["a", "b"]],
    }  # fmt: skip
    block = {**SWEEP, **PAIR, "tokenizer": "builtin:world", "device": "cuda:1", "local_run": local_run}
    found = translate(written(tmp_path, block, model={"layers": 4}, training={}), {}).not_carried
    assert set(found) == {
        *(f"residual_compare.local_run.{key}" for key in local_run),
        "residual_compare.model_sweep.estimated_vram_gb", "residual_compare.base_model", "residual_compare.sft_model",
        "residual_compare.tokenizer", "residual_compare.dtype", "residual_compare.device", "model, training",
    }  # fmt: skip
    assert "--device cuda:N" in found["residual_compare.local_run.cuda_device_index"]
    assert found["residual_compare.base_model"] == "model_sweep names the pairs"
    assert "auto is bfloat16 for hub models" in found["residual_compare.dtype"]
    assert "--device cuda:1" in found["residual_compare.device"]
    assert "the trainer reads it" in found["model, training"]
    assert all(found.values())


def test_the_text_is_a_study_file_headed_by_what_is_missing(tmp_path: Path) -> None:
    translation = translated(tmp_path, {**SWEEP, "dtype": "bf16"})
    path = tmp_path / "study.yaml"
    path.write_text(translation.text("config.yaml"), "utf-8")
    assert "# not carried: residual_compare.model_sweep.estimated_vram_gb: computed" in path.read_text("utf-8")
    assert load_study(path, environment={}) == checked(translation)[0]


@pytest.mark.parametrize(
    ("config", "dtype"),
    [({"dtype": "bfloat16"}, "bfloat16"), ({"torch_dtype": "float16"}, "float16"), ({}, "float32")],
)
def test_auto_is_the_dtype_of_a_directorys_checkpoint(tmp_path: Path, config: dict[str, str], dtype: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert checked(translated(tmp_path, {**PAIR, "base_model": str(tmp_path)}))[1].dtype == dtype


def test_auto_is_bfloat16_for_hub_models_and_a_pair_that_differs_says_so(tmp_path: Path) -> None:
    sweep = [*SWEEP["model_sweep"], {"name": "own", "base_model": "builtin:world", "sft_model": "builtin:world"}]
    _, parameters = checked(translated(tmp_path, {**SWEEP, "model_sweep": sweep, "dtype": "auto"}))
    assert parameters.dtype == "bfloat16"
    assert [parameters.pairs[name].dtype for name in ("small", "large", "own")] == [None, "float16", "float32"]


def test_a_config_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[")
    with pytest.raises(ModelError, match=r"config\.json cannot be read: .*; got '.*'"):
        translated(tmp_path, {**PAIR, "base_model": str(tmp_path)})


@pytest.mark.parametrize(("device", "gpus"), [("cpu", 0), ("cuda", 1), ("cuda:3", 1)])
def test_a_device_is_a_number_of_gpus(tmp_path: Path, device: str, gpus: int) -> None:
    assert checked(translated(tmp_path, {**PAIR, "device": device}))[0].resources.gpus == gpus


def test_production_trims_the_files_prompts_and_development_reads_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("long enough\nshort\n")
    path = written(tmp_path, {**PAIR, "prompt_file": "prompts.txt"})
    translation = translate(path, {})
    full = load_study(path, data=translation.study, environment={"DEV_MODE": "False"})
    production = validated(ResidualParameters, full.parameters, "full")
    assert (production.prompt_file, production.prompts, production.normalize_length) == ("prompts.txt", (), True)
    assert "read in development only" in translation.not_carried["residual_compare.prompts"]
    assert "residual_compare.prompt_file" not in translation.not_carried
    quick = load_study(path, data=translation.study, environment={"DEV_MODE": "True"})
    development = validated(ResidualParameters, quick.parameters, "quick")
    assert quick.smoke
    assert (development.prompt_file, development.prompts, development.normalize_length) == (None, ("one", "two"), False)
    not_carried = translate(path, {"DEV_MODE": "1"}).not_carried
    assert "read in production only" in not_carried["residual_compare.prompt_file"]
    assert "residual_compare.prompts" not in not_carried


def test_without_prompts_of_its_own_development_reads_the_file_untrimmed(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("one\n")
    path = written(tmp_path, {**PAIR, "prompts": None, "prompt_file": str(tmp_path / "prompts.txt")})
    quick = load_study(path, data=translate(path, {}).study, profile="quick", environment={})
    assert (quick.smoke, quick.parameters["normalize_length"]) == (True, False)
    assert quick.parameters["prompt_file"] == str(tmp_path / "prompts.txt")


def test_a_prompt_file_is_looked_for_here_and_then_beside_the_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    monkeypatch.chdir(here)
    path = written(there, {**PAIR, "prompt_file": "prompts.txt"})
    with pytest.raises(StudyError) as refused:
        translate(path, {})
    assert "residual_compare.prompt_file: there is no such file; got 'prompts.txt'" in str(refused.value)
    assert f"from the working directory {here} or from {there}" in str(refused.value)
    (there / "prompts.txt").write_text("there\n")
    assert translate(path, {}).study["parameters"]["prompt_file"] == str(there / "prompts.txt")
    (here / "prompts.txt").write_text("here\n")
    assert translate(path, {}).study["parameters"]["prompt_file"] == "prompts.txt"


def test_variables_name_one_pair_and_the_sweep_gives_way(tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text("other\n")
    environment = {
        "RESIDUAL_BASE_MODEL": "builtin:world",
        "RESIDUAL_SFT_MODEL": "random:tiny-llama",
        "RESIDUAL_TOKENIZER": "builtin:world",
        "RESIDUAL_DEVICE": "cpu",
        "RESIDUAL_DTYPE": "fp16",
        "RESIDUAL_PROMPT_FILE": str(tmp_path / "other.txt"),
        "RESIDUAL_TOKENIZER_KWARGS": '{"use_fast": false}',
        "RESIDUAL_MODEL_KWARGS": '{"attn_implementation": "eager"}',
    }
    translation = translated(tmp_path, {**SWEEP, "device": "cuda"}, environment)
    study, parameters = checked(translation)
    assert list(study.arms) == ["same_model", "tiny-llama"]
    pair = parameters.pairs["tiny-llama"]
    assert (pair.base, pair.sft, pair.tokenizer) == ("builtin:world", "random:tiny-llama", "builtin:world")
    assert (study.resources.gpus, parameters.dtype) == (0, "float16")
    assert parameters.prompt_file == str(tmp_path / "other.txt")
    assert parameters.tokenizer_kwargs == {"use_fast": False}
    assert parameters.model_kwargs["attn_implementation"] == "eager"
    assert "RESIDUAL_SFT_MODEL" in translation.not_carried["residual_compare.model_sweep"]


def test_a_dtype_and_a_tokeniser_from_the_environment_hold_for_a_whole_sweep(tmp_path: Path) -> None:
    environment = {"RESIDUAL_DTYPE": "fp32", "RESIDUAL_TOKENIZER": "builtin:world", "RESIDUAL_DEVICE": " "}
    _, parameters = checked(translated(tmp_path, SWEEP, environment))
    assert parameters.dtype == "float32"
    assert {pair.dtype for pair in parameters.pairs.values()} == {None}
    assert {pair.tokenizer for pair in parameters.pairs.values()} == {"builtin:world"}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"top_kk": 3}, r"config.yaml:\d+: unknown key 'residual_compare.top_kk' \(did you mean 'top_k'\?\); valid: b"),
        ({"local_run": {"vram": 3}}, r"unknown key 'residual_compare.local_run.vram'.*valid: allowed_pairs"),
        ({"model_sweep": [{"name": "a", "base": "b"}]}, r"unknown key 'residual_compare.model_sweep.0.base'"),
        ({"model_sweep": [{"name": "a", "base_model": "b"}]}, r"'residual_compare.model_sweep.0.sft_model' is missing"),
        ({"multi_pass": {"on": True}}, r"unknown key 'residual_compare.multi_pass.on'.*valid: enabled"),
        ({"dtype": "fp64"}, r"residual_compare.dtype: must be 'auto', 'fp32', 'fp16', 'bf16'.*got 'fp64'"),
        ({"device": "tpu"}, r"residual_compare.device: must be auto, cpu, cuda or cuda:N; got 'tpu'"),
        ({"sft_model": None}, r"residual_compare: give `base_model` and `sft_model`, or `model_sweep`"),
        ({"prompts": []}, r"residual_compare: give `prompts` or `prompt_file`"),
        ({"model_sweep": [{"name": "same_model", "base_model": "b", "sft_model": "c"}]}, r"'same_model' is taken"),
    ],
)  # fmt: skip
def test_a_wrong_block_is_refused_with_the_key_and_what_is_valid(
    tmp_path: Path, changes: dict[str, Any], problem: str
) -> None:
    with pytest.raises(StudyError, match=problem):
        translated(tmp_path, {**PAIR, **changes})


@pytest.mark.parametrize(
    ("environment", "problem"),
    [
        ({"RESIDUAL_DTYPE": "fp64"}, r"^environment variable RESIDUAL_DTYPE: residual_compare.dtype: must be 'auto'"),
        (
            {"RESIDUAL_DEVICE": "tpu"},
            r"^environment variable RESIDUAL_DEVICE: .*device: must be auto, cpu, cuda or cuda:N; got 'tpu'",
        ),
        (
            {"RESIDUAL_BASE_MODL": "builtin:world"},
            r"^unknown environment variable RESIDUAL_BASE_MODL \(did you mean 'RESIDUAL_BASE_MODEL'\?\); "
            r"valid: RESIDUAL_BASE_MODEL, RESIDUAL_SFT_MODEL, .*; next: unset RESIDUAL_BASE_MODL$",
        ),
        ({"RESIDUAL_MODEL_KWARGS": "{"}, r"variable RESIDUAL_MODEL_KWARGS; got '{'; valid: a JSON object"),
        (
            {"RESIDUAL_TOKENIZER_KWARGS": "[1]"},
            r"variable RESIDUAL_TOKENIZER_KWARGS; got '\[1\]'; valid: a JSON object",
        ),
    ],
)
def test_a_wrong_variable_is_named(tmp_path: Path, environment: dict[str, str], problem: str) -> None:
    with pytest.raises(StudyError, match=problem):
        translated(tmp_path, PAIR, environment)


def test_variables_that_say_nothing_or_are_others_are_let_be(tmp_path: Path) -> None:
    environment = {"RESIDUAL_BASE_MODL": " ", "MY_RESIDUAL_BASE": "x"}
    assert translated(tmp_path, PAIR, environment).study == translated(tmp_path, PAIR).study


def test_only_a_file_with_the_block_is_translated(tmp_path: Path) -> None:
    assert is_compare_config({"residual_compare": {}, "model": {}})
    assert not is_compare_config({"residual_compare": {}, "protocol": "residual"})
    assert not is_compare_config([1])
    path = tmp_path / "other.yaml"
    path.write_text("format: 1\n", "utf-8")
    with pytest.raises(StudyError, match=r"other\.yaml has no block residual_compare; valid: a mapping with residual_"):
        translate(path, {})
    with pytest.raises(StudyError, match="residual_compare: must be a mapping"):
        translated(tmp_path, 3)


@pytest.mark.parametrize("name", ["dev", "prod"])
def test_the_runbooks_configurations_become_studies_that_can_be_planned(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    translation = translate(Path(f"configs/{name}_config.yaml"), {})
    study, parameters = checked(translation)
    assert len(Residual().plan(study)) == len(parameters.pairs) == len(study.analysis.contrasts) + 1
    assert parameters.normalize_length
    assert "the trainer reads it" in translation.not_carried["model, training, checkpoint, tracking, cost"]


def test_both_configurations_say_the_same_keys_to_the_trainer() -> None:
    dev, prod = (parse_file(ROOT / "configs" / f"{name}_config.yaml").data for name in ("dev", "prod"))
    sections = [key for key in dev if key != "residual_compare"]
    assert {key: set(dev[key]) for key in sections} == {key: set(prod[key]) for key in sections}
    for bigger in ("model.d_model", "model.layers", "training.batch_size", "training.epochs", "cost.price_per_hour"):
        section, key = bigger.split(".")
        assert dev[section][key] < prod[section][key]


def test_the_shipped_sweep_is_the_configurations_on_the_same_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    translated_study, theirs = checked(translate(Path("configs/dev_config.yaml"), {}))
    study = load_study(ROOT / "studies" / "residual_qwen_llama_sweep.yaml", environment={})
    ours = validated(ResidualParameters, study.parameters, "sweep")
    assert {name: (pair.base, pair.sft) for name, pair in ours.pairs.items()} == {
        name: (pair.base, pair.sft) for name, pair in theirs.pairs.items()
    }
    assert theirs.prompt_file is not None
    assert ours.prompts == read_prompts(theirs.prompt_file)
    assert study.analysis == translated_study.analysis
    assert study.factors == translated_study.factors
    assert (ours.dtype, ours.tracked, ours.top_k) == (theirs.dtype, theirs.tracked, theirs.top_k)
    assert ours.passes() == theirs.passes()
