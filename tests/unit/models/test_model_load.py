import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from nullarm.errors import ModelError
from nullarm.models.facts import weights_directory
from nullarm.models.load import load_causal_lm, load_sequence_classifier, load_tokenizer
from nullarm.models.quiet import without_progress_bars
from nullarm.models.reference import parse
from nullarm.models.shapes import SHAPES
from nullarm.models.word_tokenizer import word_tokenizer


@pytest.fixture
def copy_of_world(tmp_path: Path) -> Path:
    source = weights_directory("builtin:world")
    assert source is not None
    return Path(shutil.copytree(source, tmp_path / "world"))


def test_a_built_in_model_and_a_copy_of_its_directory_are_the_same(
    world_model: tuple[Any, Any], copy_of_world: Path
) -> None:
    model, tokenizer = load_causal_lm(str(copy_of_world))
    assert not model.training
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), world_model[0].parameters(), strict=True))
    assert tokenizer.get_vocab() == world_model[1].get_vocab()


def test_the_dtype_asked_for_is_the_dtype_loaded() -> None:
    model, _ = load_causal_lm("random:tiny-llama", dtype="bfloat16")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("name", [n for n, shape in SHAPES.items() if shape.tiny])
def test_tiny_random_models_run_and_follow_from_their_seed(name: str) -> None:
    model, tokenizer = load_causal_lm(f"random:{name}")
    again, _ = load_causal_lm(f"random:{name}")
    other, _ = load_causal_lm(f"random:{name}@1")
    ids = torch.tensor([tokenizer("w1 w2 w3")["input_ids"]])
    with torch.no_grad():
        logits = model(input_ids=ids).logits
        assert torch.equal(logits, again(input_ids=ids).logits)
        assert not torch.equal(logits, other(input_ids=ids).logits)
    assert logits.shape == (1, ids.shape[1], model.config.vocab_size)
    assert len(tokenizer) <= model.config.vocab_size


def test_loading_does_not_draw_from_the_global_generator() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    load_sequence_classifier("random:tiny-llama@7", 3)
    assert torch.equal(torch.rand(1), expected)


def test_the_head_of_a_classifier_follows_from_its_seed() -> None:
    heads = [load_sequence_classifier("builtin:world", 3, seed=seed)[0].score.weight for seed in (0, 0, 1)]
    assert heads[0].shape == (3, 64)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_a_classifier_knows_its_padding() -> None:
    model, tokenizer = load_sequence_classifier("builtin:world", 2)
    assert model.config.pad_token_id == tokenizer.pad_token_id == 0


def test_a_tokenizer_without_padding_pads_with_its_end_of_text(copy_of_world: Path) -> None:
    path = copy_of_world / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    del settings["pad_token"]
    path.write_text(json.dumps(settings))
    _, tokenizer = load_causal_lm(str(copy_of_world))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 0


def test_a_directory_without_weights_says_so(copy_of_world: Path) -> None:
    (copy_of_world / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"cannot be loaded: .*model\.safetensors"):
        load_causal_lm(str(copy_of_world))


def test_damaged_weights_are_a_model_error(copy_of_world: Path) -> None:
    (copy_of_world / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_causal_lm(str(copy_of_world))


def test_a_pickled_checkpoint_is_not_read(copy_of_world: Path) -> None:
    (copy_of_world / "model.safetensors").unlink()
    torch.save({}, copy_of_world / "pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_causal_lm(str(copy_of_world))


def test_a_hub_model_that_is_not_here_names_the_next_command() -> None:
    with pytest.raises(ModelError, match=r"neither cached nor reachable.*next: hf download some/model --revision main"):
        load_causal_lm("some/model")


def test_an_unknown_dtype_lists_the_known() -> None:
    with pytest.raises(ModelError, match="unknown dtype; got 'float8'; valid: float32"):
        load_causal_lm("builtin:world", dtype="float8")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_gpu_is_named() -> None:
    with pytest.raises(ModelError, match="no CUDA device here; got 'cuda'"):
        load_causal_lm("builtin:world", device="cuda")


def test_a_model_of_real_shape_is_made_where_it_is_wanted() -> None:
    model, tokenizer = load_causal_lm("random:qwen2.5-0.5b", device="meta", dtype="bfloat16")
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert model.config.num_hidden_layers == 24
    assert tokenizer("any text")["input_ids"]
    assert parse("random:qwen2.5-0.5b").kind == "random"


def test_progress_bars_are_put_back() -> None:
    from transformers.utils import logging

    logging.enable_progress_bar()
    with without_progress_bars():
        assert not logging.is_progress_bar_enabled()
    assert logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    with without_progress_bars():
        pass
    assert not logging.is_progress_bar_enabled()
    logging.enable_progress_bar()


def test_the_word_tokenizer_knows_its_words_only() -> None:
    tokenizer = word_tokenizer(8)
    assert tokenizer("w1 w7 w8")["input_ids"] == [1, 7, 0]
    assert tokenizer.decode([3, 4]) == "w3 w4"


def test_a_tokenizer_is_loaded_by_itself_and_in_place_of_a_models_own() -> None:
    tokenizer = load_tokenizer("random:planted")
    assert tokenizer("w1 w7")["input_ids"] == [1, 7]
    assert tokenizer.pad_token_id == 0
    assert load_causal_lm("random:tiny-llama", tokenizer="random:planted")[1].get_vocab() == tokenizer.get_vocab()
    assert load_tokenizer("random:qwen2.5-0.5b")("any text")["input_ids"]


def test_further_arguments_reach_from_pretrained() -> None:
    model, tokenizer = load_causal_lm(
        "random:tiny-llama",
        model_kwargs={"attn_implementation": "eager", "device_map": None},
        tokenizer_kwargs={"padding_side": "left"},
    )
    assert model.config._attn_implementation == "eager"
    assert tokenizer.padding_side == "left"


def test_a_device_map_goes_before_the_device() -> None:
    model, _ = load_causal_lm("random:tiny-llama", device="meta", model_kwargs={"device_map": {"": "cpu"}})
    assert {p.device.type for p in model.parameters()} == {"cpu"}


def test_arguments_that_follow_from_others_are_refused() -> None:
    with pytest.raises(ModelError, match=r"set elsewhere; got \['torch_dtype', 'use_safetensors'\]"):
        load_causal_lm("random:tiny-llama", model_kwargs={"use_safetensors": False, "torch_dtype": "auto"})


@pytest.mark.parametrize("name", ["model_kwargs", "tokenizer_kwargs"])
def test_a_model_that_is_not_read_takes_no_arguments_for_reading(name: str) -> None:
    arguments: dict[str, Any] = {name: {"device_map": None, "trust_remote_code": True}}
    with pytest.raises(ModelError, match=r"is not read from files.*got \['trust_remote_code'\]"):
        load_causal_lm("random:qwen2.5-0.5b", device="meta", **arguments)


def test_a_full_device_is_the_callers_to_deal_with(monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", fill)
    with pytest.raises(torch.OutOfMemoryError, match="full"):
        load_causal_lm("random:tiny-llama")
