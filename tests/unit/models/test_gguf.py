"""Models from GGUF files that the test writes, against the models they were written from."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants
from transformers import AutoConfig, AutoModelForCausalLM

from nullarm.errors import ModelError
from nullarm.models.facts import architecture, linear_shapes, parameter_count, shape_facts, weights_directory
from nullarm.models.gguf import configuration, read_header
from nullarm.models.gguf.weights import unpermuted
from nullarm.models.load import load_causal_lm, load_sequence_classifier, load_tokenizer
from nullarm.models.reference import Reference, content_id, parse
from nullarm.models.shapes import LLAMA3_ROPE, SHAPES
from nullarm.protocols.model_access import model_access
from support.gguf_file import exported, write_gguf

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    return lambda *args, **kwargs: write_gguf(tmp_path / "model.gguf", *args, **kwargs)


def random_model(name: str, **changed: Any) -> Any:
    """A model of a shape with something changed; norms and biases are no ones and zeros either."""
    settings = {**SHAPES[name].config, **changed}
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def logits(model: Any, length: int = 40) -> torch.Tensor:
    ids = torch.arange(length).mul(37).remainder(700)[None]
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=ids).logits
    return found


def difference(a: Any, b: Any, length: int = 40) -> float:
    return float((logits(a, length) - logits(b, length)).abs().max())


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-qwen2", "tiny-qwen3"])
@pytest.mark.parametrize("tied", [False, True])
def test_a_file_computes_what_its_model_computes(name: str, tied: bool, write: Write, tiny_llama: Any) -> None:
    original = random_model(name, tie_word_embeddings=tied)
    model, _ = load_causal_lm(str(write(original, tiny_llama[1])))
    assert type(model) is type(original)
    assert not model.training
    assert difference(model, original) < 1e-5
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    assert {k: v.shape for k, v in model.state_dict().items()} == {k: v.shape for k, v in original.state_dict().items()}


def test_biases_of_a_llama_are_read_and_interleaved_as_well(write: Write, tiny_llama: Any) -> None:
    original = random_model("tiny-llama", attention_bias=True, mlp_bias=True)
    model, _ = load_causal_lm(str(write(original, tiny_llama[1])))
    assert difference(model, original) < 1e-5


def test_rows_that_are_not_put_back_would_be_noticed(write: Write, tiny_llama: Any) -> None:
    original = random_model("tiny-llama")
    model, _ = load_causal_lm(str(write(original, tiny_llama[1], permute=False)))
    assert difference(model, original) > 0.1


def test_rows_are_put_back_by_hand() -> None:
    in_the_file = torch.tensor([0, 2, 1, 3, 10, 12, 11, 13])
    assert unpermuted(in_the_file, 2).tolist() == [0, 1, 2, 3, 10, 11, 12, 13]
    assert torch.equal(unpermuted(in_the_file[:, None], 2), unpermuted(in_the_file, 2)[:, None])


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0"])
def test_quantised_weights_are_those_that_the_blocks_stand_for(kind: str, write: Write, tiny_llama: Any) -> None:
    original = random_model("tiny-llama")
    model, _ = load_causal_lm(str(write(original, tiny_llama[1], kind=kind)))
    rounded = copy.deepcopy(original)
    for parameter in rounded.parameters():
        if parameter.ndim == 2:
            parameter.data = torch.from_numpy(_there_and_back(parameter.detach().numpy(), kind))
    assert difference(model, rounded) < 1e-5
    assert difference(model, original) > 1e-4


def _there_and_back(values: np.ndarray[Any, Any], kind: str) -> np.ndarray[Any, Any]:
    """Blocks lie within a row, so that the order of rows does not matter."""
    chosen = GGMLQuantizationType[kind]
    return quants.dequantize(quants.quantize(values, chosen), chosen).reshape(values.shape)


def test_the_writer_of_these_tests_interleaves_rows() -> None:
    original = random_model("tiny-llama")
    name = "model.layers.0.self_attn.k_proj.weight"
    weight = original.state_dict()[name]
    rows = exported(name, weight, original.config, permute=True)
    assert np.array_equal(rows[:4], weight.numpy()[[0, 4, 1, 5]])


def test_llama_3s_scaled_positions_are_recognised_by_their_factors(write: Write, tiny_llama: Any) -> None:
    original = random_model("tiny-llama", rope_parameters=LLAMA3_ROPE, head_dim=16, max_position_embeddings=32768)
    inverse, _ = original.model.rotary_emb.compute_default_rope_parameters(original.config)
    factors = (inverse / original.model.rotary_emb.inv_freq).numpy()
    assert 1 < factors[4] < 7.9  # one between the ends, where they are interpolated
    path = write(original, tiny_llama[1], extra={"rope_freqs.weight": factors.astype(np.float32)})
    model, _ = load_causal_lm(str(path))
    assert model.config.rope_parameters == LLAMA3_ROPE
    assert difference(model, original, length=600) < 1e-4
    assert parameter_count(str(path)) == original.num_parameters()


@pytest.mark.parametrize("factors", [[1.0, 2.0, 3.0, 4.0], [8.0]])
def test_factors_of_another_kind_are_refused(factors: list[float], write: Write) -> None:
    path = write(random_model("tiny-llama"), extra={"rope_freqs.weight": np.array(factors, np.float32)})
    with pytest.raises(ModelError, match=r"scaled in a way that is not known.*valid: none, linear, yarn, or.*Llama 3"):
        shape_facts(str(path))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"scaling.type": "linear", "scaling.factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        (
            {"scaling.type": "yarn", "scaling.factor": 4.0, "scaling.original_context_length": 256},
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256},
        ),
    ],
)
def test_other_scaled_positions_are_read(
    settings: dict[str, Any], expected: dict[str, Any], write: Write, tiny_llama: Any
) -> None:
    original = random_model("tiny-qwen2", rope_parameters={"rope_theta": 10000.0, **expected})
    path = write(original, tiny_llama[1], settings={f"qwen2.rope.{key}": value for key, value in settings.items()})
    model, _ = load_causal_lm(str(path))
    assert difference(model, original, length=300) < 1e-4
    assert difference(model, random_model("tiny-qwen2"), length=300) > 1e-2


def test_unknown_scaling_is_refused(write: Write) -> None:
    path = write(random_model("tiny-llama"), settings={"llama.rope.scaling.type": "longrope"})
    with pytest.raises(ModelError, match="got 'longrope'"):
        load_causal_lm(str(path), tokenizer="random:tiny-llama")


def test_dtype_and_arguments_are_as_with_other_models(write: Write, tiny_llama: Any) -> None:
    path = str(write(*tiny_llama, kind="Q8_0"))
    model, tokenizer = load_causal_lm(
        path,
        dtype="bfloat16",
        model_kwargs={"attn_implementation": "eager", "device_map": {"": "cpu"}},
        tokenizer_kwargs={"padding_side": "left"},
    )
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.config._attn_implementation == "eager"
    assert tokenizer.padding_side == "left"
    with pytest.raises(ModelError, match="set elsewhere"):
        load_causal_lm(path, model_kwargs={"dtype": "auto"})


def test_a_loaded_model_is_saved_as_any_other(write: Write, tiny_llama: Any, tmp_path: Path) -> None:
    model, tokenizer = load_causal_lm(str(write(*tiny_llama)))
    model.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    again, words = load_causal_lm(str(tmp_path / "saved"))
    assert difference(model, again) == 0
    assert words("w1 and 12")["input_ids"] == tokenizer("w1 and 12")["input_ids"]


def test_a_classifier_is_put_on_a_file(write: Write, tiny_llama: Any) -> None:
    path = str(write(*tiny_llama))
    models = [load_sequence_classifier(path, 3, seed=seed)[0] for seed in (0, 0, 1)]
    assert torch.equal(models[0].model.embed_tokens.weight, tiny_llama[0].model.embed_tokens.weight)
    assert models[0].score.weight.shape == (3, 32)
    assert torch.equal(models[0].score.weight, models[1].score.weight)
    assert not torch.equal(models[0].score.weight, models[2].score.weight)


# planning


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-qwen2", "tiny-qwen3"])
def test_facts_are_those_of_the_model(name: str, write: Write) -> None:
    original = random_model(name)
    path = str(write(original, kind="Q8_0"))
    assert shape_facts(path) == shape_facts(f"random:{name}")
    assert linear_shapes(path) == linear_shapes(f"random:{name}")
    assert parameter_count(path) == original.num_parameters()
    assert architecture(path) == type(original).__name__
    assert weights_directory(path) is None
    assert model_access(path).ok


def test_planning_reads_no_weights_and_imports_no_torch(write: Write, tiny_llama: Any) -> None:
    path = write(*tiny_llama)
    program = """
import json, sys
from nullarm.models import content_id, linear_shapes, parameter_count, shape_facts
ref = sys.argv[1]
out = [content_id(ref), parameter_count(ref), len(linear_shapes(ref)), shape_facts(ref).layers]
print(json.dumps([out, [m for m in ("torch", "transformers") if m in sys.modules]]))
"""
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)
    answers, heavy = json.loads(done.stdout)
    assert heavy == []
    assert answers[0].startswith("gguf:")
    assert answers[1:] == [tiny_llama[0].num_parameters(), 14, 2]


# references


def test_a_file_is_named_by_its_bytes(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(random_model("tiny-llama"))
    before = content_id(str(path))
    moved = path.rename(tmp_path / "moved.gguf")
    assert content_id(str(moved)) == before
    monkeypatch.chdir(tmp_path)
    assert parse("moved.gguf") == Reference("gguf", "moved.gguf")
    with moved.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    assert content_id(str(moved)) != before


@pytest.mark.parametrize(
    ("ref", "file", "revision"),
    [
        ("some/model-GGUF/model.Q4_K_M.gguf", "model.Q4_K_M.gguf", "main"),
        ("some/model-GGUF/sub/model.gguf@abc", "sub/model.gguf", "abc"),
    ],
)
def test_a_file_on_the_hub_is_named_by_place_and_revision(ref: str, file: str, revision: str) -> None:
    reference = parse(ref)
    assert reference == Reference("gguf", "some/model-GGUF", revision=revision, file=file)
    assert reference.on_hub
    assert content_id(ref) == f"hub:some/model-GGUF/{file}@{revision}"


@pytest.mark.parametrize("ref", ["/nowhere/model.gguf", "./model.gguf", "model.gguf"])
def test_a_missing_file_is_refused_with_the_kinds_there_are(ref: str) -> None:
    with pytest.raises(ModelError, match=r"GGUF file is missing; got .*valid: builtin:NAME.*a GGUF file.*next: ls "):
        parse(ref)


def test_a_file_on_the_hub_that_is_not_here_names_the_download() -> None:
    ref = "some/model-GGUF/model.gguf@abc"
    command = r"next: hf download some/model-GGUF model\.gguf --revision abc"
    for read in (shape_facts, parameter_count):
        with pytest.raises(ModelError, match=rf"not on this machine yet.*{command}"):
            read(ref)
    with pytest.raises(
        ModelError, match=rf"neither cached nor reachable, and there is no file of this name.*{command}"
    ):
        load_causal_lm(ref)
    refused = model_access(ref)
    assert not refused.ok
    assert "hf download some/model-GGUF model.gguf --revision abc" in refused.cure


def test_a_downloaded_file_is_a_model(write: Write, tiny_llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(*tiny_llama)

    def found(name: str, file: str, revision: str) -> str:
        assert (name, file, revision) == ("some/model-GGUF", "m.gguf", "main")
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", found)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", found)
    ref = "some/model-GGUF/m.gguf"
    assert difference(load_causal_lm(ref)[0], tiny_llama[0]) < 1e-5
    assert shape_facts(ref) == shape_facts("random:tiny-llama")
    assert model_access(ref).ok


# damage


def test_a_file_cut_anywhere_is_refused(write: Write, tiny_llama: Any) -> None:
    path = write(*tiny_llama)
    whole = path.read_bytes()
    for length in (*range(0, 2000, 7), len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ModelError, match=r"cannot be read, or is cut short.*valid: a whole GGUF file.*next: ls -l"):
            read_header(path)
    assert not model_access(str(path)).ok
    with pytest.raises(ModelError, match="cut short"):
        load_causal_lm(str(path))


def test_damage_in_the_header_is_never_a_traceback(write: Write, tiny_llama: Any) -> None:
    path = write(*tiny_llama)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        data = bytearray(whole)
        data[int(rng.integers(0, 900))] = int(rng.integers(0, 256))
        path.write_bytes(bytes(data))
        try:
            configuration(read_header(path))
        except ModelError:
            refused += 1
    assert refused > 100


@pytest.mark.parametrize("name", ["model.safetensors", "README"])
def test_another_file_under_this_name_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / f"{name}.gguf"
    path.write_bytes(b"something else entirely, and long enough for a header")
    with pytest.raises(ModelError, match="starts with b'some' instead of b'GGUF'"):
        load_causal_lm(str(path))


def test_an_unknown_architecture_lists_the_known(write: Write, tiny_llama: Any) -> None:
    path = write(tiny_llama[0], settings={"general.architecture": "mamba"})
    for read in (shape_facts, lambda ref: load_causal_lm(ref, tokenizer="random:tiny-llama")):
        with pytest.raises(
            ModelError, match=r"got 'mamba'; valid: dense llama, dense qwen2, dense qwen3; next: name the"
        ):
            read(str(path))
    assert architecture(str(path)) is None


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"llama.expert_count": 8}, "of this architecture with experts"),
        ({"split.count": 3}, r"one of 3 parts.*next: llama-gguf-split --merge"),
        (
            {"llama.attention.head_count": [4, 4]},
            r"has no llama\.attention\.head_count that is one number; got \[4, 4\]",
        ),
        ({"llama.block_count": 0}, r"no llama\.block_count.*valid: a number above 0"),
    ],
)
def test_what_cannot_be_read_is_named(settings: dict[str, Any], words: str, write: Write) -> None:
    path = write(random_model("tiny-llama"), settings=settings)
    with pytest.raises(ModelError, match=words):
        shape_facts(str(path))


def test_a_weight_that_is_missing_is_not_drawn_at_random(write: Write, tiny_llama: Any) -> None:
    path = write(*tiny_llama, leave_out="blk.1.ffn_up.weight")
    with pytest.raises(ModelError, match=r"lacks 1 weights.*among them model\.layers\.1\.mlp\.up_proj\.weight"):
        load_causal_lm(str(path))


def test_a_tensor_without_a_place_is_refused(write: Write, tiny_llama: Any) -> None:
    path = write(*tiny_llama, extra={"blk.0.attn_sinks.weight": np.zeros(4, np.float32)})
    with pytest.raises(ModelError, match=r"no place for; got 'blk\.0\.attn_sinks\.weight'; valid: token_embd"):
        load_causal_lm(str(path))


def test_a_file_without_a_tokeniser_takes_another_models(write: Write, tiny_llama: Any) -> None:
    path = str(write(tiny_llama[0]))
    with pytest.raises(ModelError, match=r"names no tokeniser.*valid: gpt2, llama; next: take the tokeniser"):
        load_tokenizer(path)
    model, _ = load_causal_lm(path, tokenizer="random:tiny-llama")
    assert difference(model, tiny_llama[0]) < 1e-5
