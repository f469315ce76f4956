import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import BertConfig, BertModel

from nullarm.errors import ModelError
from nullarm.models.anatomy import LAYOUTS, SUPPORTED, anatomy
from nullarm.models.instantiate import instantiate
from nullarm.models.shapes import SHAPES

TINY = [name for name in SHAPES if name.startswith("tiny-")]


def test_every_supported_class_has_a_tiny_model() -> None:
    assert {type(instantiate(name)).__name__ for name in TINY} == set(SUPPORTED) == set(LAYOUTS)


@pytest.mark.parametrize("name", TINY)
def test_the_parts_together_are_the_model(name: str) -> None:
    model = instantiate(name, device="cpu")
    parts = anatomy(model)
    ids = torch.arange(48).reshape(2, 24)
    with torch.no_grad():
        embeddings = parts.embedding(ids)
        normed = parts.trunk(inputs_embeds=embeddings, use_cache=False)[0]
        logits = parts.head(normed)
        if parts.softcap is not None:
            logits = parts.softcap * torch.tanh(logits / parts.softcap)
        torch.testing.assert_close(logits, model(input_ids=ids).logits, rtol=0, atol=1e-5)
        torch.testing.assert_close(normed, parts.trunk(input_ids=ids, use_cache=False)[0], rtol=0, atol=1e-5)
    assert len(parts.blocks) == 2
    assert parts.model is model


def test_only_a_model_with_a_softcap_has_one() -> None:
    capped = {name: anatomy(instantiate(name)).softcap for name in TINY}
    assert {name: cap for name, cap in capped.items() if cap is not None} == {"tiny-gemma2": 30.0}


def test_an_unknown_class_is_refused_by_name() -> None:
    with torch.device("meta"):
        model = BertModel(BertConfig())
    with pytest.raises(ModelError, match=r"BertModel.*valid: LlamaForCausalLM, .*next: \"Add an architecture\""):
        anatomy(model)


def test_a_peft_model_is_looked_into() -> None:
    model = instantiate("tiny-llama", device="cpu")
    parts = anatomy(get_peft_model(model, LoraConfig(target_modules=["q_proj"])))
    assert parts.model is model
    assert parts.blocks is model.model.layers


def test_an_adapted_head_is_refused() -> None:
    adapted = get_peft_model(instantiate("tiny-llama", device="cpu"), LoraConfig(target_modules=["lm_head"]))
    with pytest.raises(ModelError, match=r"head is no plain linear layer.*next: model\.merge_and_unload\(\)"):
        anatomy(adapted)


def test_virtual_tokens_are_refused() -> None:
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    adapted = get_peft_model(instantiate("tiny-llama", device="cpu"), config)
    with pytest.raises(ModelError, match=r"adds virtual tokens.*got 'PROMPT_TUNING'"):
        anatomy(adapted)
