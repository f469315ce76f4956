import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file

from nullarm.errors import AdapterError, ModelError
from nullarm.models.instantiate import written
from nullarm.models.load import load_causal_lm, load_sequence_classifier, load_tokenizer
from nullarm.models.reference import parse

BASE = "random:tiny-llama"
IDS = torch.arange(48).reshape(2, 24)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """LoRA on two projections, with weights that matter."""
    model, _ = load_causal_lm(BASE)
    adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"]))
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=draw)
    adapted.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        answer: torch.Tensor = model(input_ids=IDS).logits
        return answer


def test_an_adapter_is_merged_into_its_base(adapter: Path, tiny_llama: tuple[Any, Any]) -> None:
    model, tokenizer = load_causal_lm(str(adapter), base=BASE)
    wrapped = PeftModel.from_pretrained(load_causal_lm(BASE)[0], str(adapter)).eval()
    torch.testing.assert_close(logits(model), logits(wrapped), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(logits(model), logits(tiny_llama[0]), atol=0.1)
    assert {n: p.shape for n, p in model.named_parameters()} == {
        n: p.shape for n, p in tiny_llama[0].named_parameters()
    }
    assert type(model) is type(tiny_llama[0])
    assert not model.training
    assert tokenizer.get_vocab() == tiny_llama[1].get_vocab()


def test_an_adapter_is_merged_in_the_dtype_asked_for(adapter: Path) -> None:
    model, _ = load_causal_lm(str(adapter), base=BASE, dtype="bfloat16")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_a_whole_model_needs_no_base(tiny_llama: tuple[Any, Any]) -> None:
    model, _ = load_causal_lm(BASE, base="builtin:world")
    assert torch.equal(logits(model), logits(tiny_llama[0]))


def test_the_tokenizer_beside_an_adapter_goes_before_its_bases(adapter: Path) -> None:
    tokenizer = load_tokenizer(BASE)
    tokenizer.add_tokens(["<answer>"])
    tokenizer.save_pretrained(adapter)
    assert "<answer>" in load_causal_lm(str(adapter), base=BASE)[1].get_vocab()
    assert "<answer>" in load_tokenizer(str(adapter), base=BASE).get_vocab()
    assert "<answer>" not in load_causal_lm(str(adapter), base=BASE, tokenizer=BASE)[1].get_vocab()


@pytest.mark.parametrize("load", [load_causal_lm, load_tokenizer, lambda ref: load_sequence_classifier(ref, 2)])
def test_an_adapter_without_a_base_is_refused(adapter: Path, load: Any) -> None:
    with pytest.raises(ModelError, match="holds a PEFT adapter, and a whole model is needed here"):
        load(str(adapter))


def test_an_adapter_is_no_base(adapter: Path) -> None:
    with pytest.raises(ModelError, match="holds a PEFT adapter, and a whole model is needed here"):
        load_causal_lm(str(adapter), base=str(adapter))


def test_an_adapter_of_another_base_is_refused(adapter: Path) -> None:
    with pytest.raises(
        AdapterError, match=r"does not fit its configuration or its base Qwen2ForCausalLM: .*size mismatch"
    ):
        load_causal_lm(str(adapter), base="builtin:world")


def test_an_adapter_that_lacks_tensors_is_refused(adapter: Path) -> None:
    weights = load_file(adapter / "adapter_model.safetensors")
    del weights["base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"]
    save_file(weights, adapter / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match=r"missing adapter keys.*layers\.1\.self_attn\.q_proj\.lora_B"):
        load_causal_lm(str(adapter), base=BASE)


def test_damaged_adapter_weights_are_an_adapter_error(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(AdapterError, match="does not fit its configuration or its base"):
        load_causal_lm(str(adapter), base=BASE)


def test_a_pickled_adapter_is_not_read(adapter: Path) -> None:
    torch.save(load_file(adapter / "adapter_model.safetensors"), adapter / "adapter_model.bin")
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(AdapterError, match=r"has no adapter_model\.safetensors.*next: ls "):
        load_causal_lm(str(adapter), base=BASE)


def test_virtual_tokens_cannot_be_merged(tmp_path: Path) -> None:
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    get_peft_model(load_causal_lm(BASE)[0], config).save_pretrained(tmp_path)
    with pytest.raises(AdapterError, match=r"adds virtual tokens, and cannot be merged.*got 'PROMPT_TUNING'"):
        load_causal_lm(str(tmp_path), base=BASE)


def test_an_adapter_hidden_in_a_model_directory_is_not_applied_in_silence(adapter: Path, tmp_path: Path) -> None:
    whole = Path(shutil.copytree(written(parse(BASE)), tmp_path / "whole"))
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(adapter / file, whole / file)
    with pytest.raises(ModelError, match=r"there is a PEFT adapter in this place.*next: ls "):
        load_causal_lm(str(whole))


def test_an_adapter_may_name_a_base_that_is_elsewhere(adapter: Path) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": "/nowhere"}))
    model, _ = load_causal_lm(str(adapter), base=BASE)
    assert model.config.model_type == "llama"
