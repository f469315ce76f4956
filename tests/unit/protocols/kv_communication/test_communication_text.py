"""The sharer writes, the receiver reads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from communication_models import tiny
from communication_tokenizers import MERGES, TEMPLATE, TRIMMING_TEMPLATE, byte_bpe

from nullarm.errors import DatasetError, InvalidResult, ModelError
from nullarm.protocols.kv_communication.communication.text import asked, cut, readings, written
from nullarm.protocols.kv_communication.parameters import Text

PROMPTS = ["the cat", "the cat sat on {text} 😀", "a"]


def alone(model: Any, text: str, tokenizer: Any, most: int) -> str:
    """What the library's own generation writes."""
    from transformers import GenerationConfig

    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
    settings = GenerationConfig(max_new_tokens=most, do_sample=False, eos_token_id=0, pad_token_id=0)
    out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings)
    return str(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)).strip()


def test_the_sharer_writes_what_it_would_write_to_each_request_alone() -> None:
    model, tokenizer = tiny("tiny-llama", vocab_size=len(byte_bpe())), byte_bpe()
    settings = Text(request="of {prompt}:", max_new_tokens=9)
    found = written(model, tokenizer, PROMPTS, settings, chat_template=False)
    assert found == [alone(model, f"of {prompt}:", tokenizer, 9) for prompt in PROMPTS]
    assert len(set(found)) == 3

    chatty = byte_bpe(template=TEMPLATE)
    in_chat = written(model, chatty, PROMPTS[:1], settings, chat_template=True)
    assert in_chat == [alone(model, "<bos><user>of the cat:</><assistant>", tokenizer, 9)]

    short = written(model, tokenizer, PROMPTS, settings, chat_template=False, text_bytes=7)
    assert short == [cut(text, 7) for text in found]
    assert short != found


@pytest.mark.parametrize(
    ("limit", "kept"),
    [(None, "aé😀b"), (100, "aé😀b"), (8, "aé😀b"), (7, "aé😀"), (6, "aé"), (3, "aé"), (2, "a"), (0, "")],
)
def test_text_is_cut_at_a_character(limit: int | None, kept: str) -> None:
    assert cut("aé😀b", limit) == kept


def test_the_receiver_reads_an_earlier_turn_in_a_chat() -> None:
    settings = Text(request="About: {prompt}")
    (read,) = readings(byte_bpe(template=TEMPLATE), ["the cat"], ["It sat."], settings, chat_template=True)
    assert read.text == "<bos><user>About: the cat</><assistant>It sat.</><user>the cat</><assistant>"
    assert read.text[slice(*read.message)] == "the cat"
    assert read.message[0] > 40


def test_the_receiver_reads_the_reply_template_without_a_chat() -> None:
    tokenizer = byte_bpe(MERGES[:5])
    settings = Text(reply="{text}|{prompt}|{z}")
    (read,) = readings(tokenizer, ["a {text} b"], ["x {prompt} {y}"], settings, chat_template=False)
    assert read.text == "x {prompt} {y}|a {text} b|{z}"
    assert tokenizer.decode(read.ids) == read.text


def test_a_chat_model_is_asked_for_background_knowledge_and_any_other_goes_on_from_the_prompt() -> None:
    assert asked(Text(), "the cat", chat_template=False) == "the cat"
    in_chat = asked(Text(), "the cat", chat_template=True)
    assert in_chat.startswith("the cat\n\nIn one sentence, state the background knowledge")
    for chat_template in (False, True):
        assert asked(Text(request="of {prompt}"), "the cat", chat_template=chat_template) == "of the cat"
    (read,) = readings(byte_bpe(template=TEMPLATE), ["the cat"], ["It sat."], Text(), chat_template=True)
    assert read.text == f"<bos><user>{in_chat}</><assistant>It sat.</><user>the cat</><assistant>"


def test_a_chat_needs_a_template() -> None:
    with pytest.raises(ModelError, match="the model has no chat template"):
        readings(byte_bpe(), ["a"], ["b"], Text(), chat_template=True)
    assert readings(byte_bpe(template=TRIMMING_TEMPLATE), ["a"], ["b"], Text(), chat_template=True)[0].ids


@pytest.mark.parametrize("name", ["tiny-gpt2", "tiny-llama"])
def test_a_request_with_its_text_must_fit_the_sharers_context(name: str) -> None:
    tokenizer = byte_bpe()
    model = tiny(name, vocab_size=len(tokenizer), max_position_embeddings=16, eos_token_id=None)
    fits, longer = "a" * 8, "a" * 9
    assert len(tokenizer(fits)["input_ids"]) == 8
    settings = Text(request="{prompt}", max_new_tokens=9)
    (text,) = written(model, tokenizer, [fits], settings, chat_template=False)
    assert text
    with pytest.raises(DatasetError, match="a prompt is longer than the model's context; got '17 tokens'; valid: 16"):
        written(model, tokenizer, [fits, longer], settings, chat_template=False)


def test_a_sharer_without_numbers_writes_nothing() -> None:
    model = tiny("tiny-llama", vocab_size=len(byte_bpe()))
    model.lm_head.weight[7] = torch.nan
    with pytest.raises(InvalidResult, match="the sharer's logits are not numbers; got 'the cat'"):
        written(model, byte_bpe(), ["the cat"], Text(max_new_tokens=2), chat_template=False)
