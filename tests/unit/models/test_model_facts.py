import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig
from transformers.pytorch_utils import Conv1D

from nullarm.errors import ModelError
from nullarm.models.facts import (
    context_length,
    linear_shapes,
    parameter_count,
    shape_facts,
    tensor_shapes,
    weights_directory,
)
from nullarm.models.instantiate import instantiate
from nullarm.models.shapes import SHAPES, shape_of_hub_id
from nullarm.models.tiny import build as building

TINY = [name for name, shape in SHAPES.items() if shape.tiny]
PUBLISHED = {
    "mistral-7b-v0.1": 7_241_732_096,
    "llama-3.1-8b": 8_030_261_248,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-math-1.5b": 1_543_714_304,
    "qwen2.5-math-7b": 7_615_616_512,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "llama-3.2-1b": 1_235_814_400,
}
"""Parameter counts that the hub states."""


@pytest.mark.parametrize(("name", "count"), PUBLISHED.items())
def test_real_shapes_have_the_published_parameter_counts(name: str, count: int) -> None:
    assert parameter_count(f"random:{name}") == count
    assert parameter_count(SHAPES[name].hub_id) == count


@pytest.mark.parametrize("name", [*TINY, "qwen2.5-0.5b"])
def test_counts_and_shapes_agree_with_the_model_itself(name: str) -> None:
    model = instantiate(name)
    assert parameter_count(f"random:{name}") == sum(p.numel() for p in model.parameters())
    linear = {n: (m.in_features, m.out_features) for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    transposed = {n: tuple(m.weight.shape) for n, m in model.named_modules() if isinstance(m, Conv1D)}  # GPT-2
    del linear["lm_head"]
    assert linear_shapes(f"random:{name}") == linear | transposed


@pytest.mark.parametrize("name", TINY)
def test_a_written_configuration_gives_the_same_facts(name: str, tmp_path: Path) -> None:
    AutoConfig.for_model(**SHAPES[name].config).save_pretrained(tmp_path)
    assert shape_facts(str(tmp_path)) == shape_facts(f"random:{name}")
    assert parameter_count(str(tmp_path)) == parameter_count(f"random:{name}")


def test_gpt2_as_the_hub_has_it_leaves_out_what_is_usual(tmp_path: Path) -> None:
    config = {
        "model_type": "gpt2",
        "n_embd": 768,
        "n_head": 12,
        "n_layer": 12,
        "n_positions": 1024,
        "vocab_size": 50257,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    facts = shape_facts(str(tmp_path))
    assert (facts.intermediate_size, facts.head_dim, facts.tied_embeddings) == (3072, 64, True)
    assert parameter_count(str(tmp_path)) == 124_439_808
    (tmp_path / "config.json").write_text(json.dumps({**config, "n_inner": 100, "tie_word_embeddings": False}))
    facts = shape_facts(str(tmp_path))
    assert (facts.intermediate_size, facts.tied_embeddings) == (100, False)


def test_a_fine_tuned_model_has_the_shape_of_its_base() -> None:
    assert shape_of_hub_id("Qwen/Qwen2.5-Math-7B-Instruct") is SHAPES["qwen2.5-math-7b"]
    assert shape_of_hub_id("meta-llama/llama-3.1-8b-instruct") is SHAPES["llama-3.1-8b"]
    assert shape_of_hub_id("Qwen/Qwen3-4B-Base") is SHAPES["qwen3-4b"]
    assert shape_of_hub_id("Qwen/Qwen2.5-Instruct") is None
    assert shape_of_hub_id("-Instruct") is None


def test_an_adapter_has_no_size_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="holds a PEFT adapter, and a whole model is needed here"):
        parameter_count(str(tmp_path))


def test_mistral_has_the_modules_an_audit_of_it_sees() -> None:
    shapes = linear_shapes("mistralai/Mistral-7B-v0.1")
    assert len(shapes) == 224
    assert shapes["model.layers.31.self_attn.k_proj"] == (4096, 1024)
    assert shapes["model.layers.0.mlp.down_proj"] == (14336, 4096)


def test_facts_of_the_built_in_model(world_model: tuple[Any, Any]) -> None:
    facts = shape_facts("builtin:world")
    assert (facts.layers, facts.hidden_size, facts.heads, facts.key_value_heads) == (3, 64, 4, 2)
    assert facts.vocabulary_size == len(world_model[1])
    assert parameter_count("builtin:world") == sum(p.numel() for p in world_model[0].parameters())
    assert weights_directory("builtin:world") is not None


def test_facts_of_a_built_in_model_that_is_not_built_come_from_its_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "SHIPPED", tmp_path)
    monkeypatch.setenv("NULLARM_CACHE", str(tmp_path))
    assert weights_directory("builtin:world-chat") is None
    assert shape_facts("builtin:world-chat").layers == 3


def test_an_unknown_hub_model_asks_for_its_configuration() -> None:
    with pytest.raises(ModelError, match=r"not on this machine.*next: hf download some/model config\.json"):
        shape_facts("some/model")


def test_weights_are_measured_by_their_headers(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(3, 5), "b": torch.zeros(7)}, tmp_path / "model.safetensors")
    assert tensor_shapes(tmp_path) == {"a": (3, 5), "b": (7,)}


def test_a_weight_file_cut_short_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"\xff\x00\x00\x00\x00\x00\x00\x00{")
    with pytest.raises(ModelError, match=r"not a readable safetensors file.*model\.safetensors"):
        tensor_shapes(tmp_path)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("{", "cannot be read"),
        ("[]", "is not a mapping"),
        ('{"model_type": "bert", "hidden_size": 4}', "lacks 'num_attention_heads'"),
        ('{"model_type": "gpt2", "hidden_size": 4}', "lacks 'n_embd'"),
        ('{"hidden_size": 4}', "lacks 'model_type'"),
    ],
)
def test_a_useless_config_is_named(tmp_path: Path, config: str, words: str) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ModelError) as caught:
        shape_facts(str(tmp_path))
    assert words in str(caught.value)


def test_shapes_of_an_unknown_family_are_not_guessed(tmp_path: Path) -> None:
    config = (
        '{"model_type": "gpt9", "hidden_size": 4, "num_attention_heads": 2, "num_hidden_layers": 1,'
        ' "intermediate_size": 8, "vocab_size": 10}'
    )
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ModelError, match=r"not known in advance.*'gpt9'.*llama"):
        linear_shapes(str(tmp_path))


def test_the_context_of_a_model_is_what_its_configuration_says() -> None:
    assert context_length("builtin:world") == 512
    assert context_length("random:tiny-gpt2") == SHAPES["tiny-gpt2"].config.get("n_positions")
    assert context_length("meta-llama/Llama-3.1-8B-Instruct") == 131072
