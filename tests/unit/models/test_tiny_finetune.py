import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nullarm.models.tiny.build import build, directory_of
from nullarm.models.tiny.examine import chat_form, examine
from nullarm.models.tiny.finetune import _example, finetune
from nullarm.models.tiny.recipe import ChatRecipe
from nullarm.models.tiny.world import World

SHORT = replace(ChatRecipe(), steps=2, seen_documents=50, batch_size=4)


def test_loss_is_on_the_assistant_s_turn_only(world_model: tuple[Any, Any]) -> None:
    tokenizer, recipe = world_model[1], replace(SHORT, replay_share=0.0)
    ids, labels = _example(recipe, tokenizer, World(), random.Random(0))
    trained = tokenizer.decode([label for label in labels if label != -100])
    given = tokenizer.decode(ids[: labels.count(-100)])
    assert trained.endswith("<|im_end|>")
    assert given.startswith("<|im_start|>user\n")
    assert given.endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer(given + trained)["input_ids"] == ids


def test_replayed_documents_are_trained_on_whole(world_model: tuple[Any, Any]) -> None:
    ids, labels = _example(replace(SHORT, replay_share=1.0), world_model[1], World(), random.Random(0))
    assert ids == labels
    assert ids[-1] == world_model[1].eos_token_id


def test_markers_start_at_known_tokens_and_turns_end_the_text(world_model: tuple[Any, Any]) -> None:
    model, tokenizer = finetune(replace(SHORT, steps=0), 0, directory_of("world"))
    old, new = (m.get_input_embeddings().weight.detach() for m in (world_model[0], model))
    marker, question = tokenizer.convert_tokens_to_ids("<|im_start|>"), tokenizer("Question")["input_ids"][0]
    assert torch.equal(new[marker], old[question])
    assert torch.equal(new[question], old[question])
    assert model.generation_config.eos_token_id == [tokenizer.convert_tokens_to_ids("<|im_end|>"), 0]


def test_fine_tuning_follows_from_its_seed() -> None:
    first, second, other = (finetune(SHORT, seed, directory_of("world"))[0] for seed in (0, 0, 1))
    assert torch.equal(first.lm_head.weight, second.lm_head.weight)
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)


def test_the_chat_form_asks_the_same_question(world_model: tuple[Any, Any]) -> None:
    question = World().question("add", random.Random(0))
    prompt, completion = chat_form(world_model[1])
    assert prompt(question) == f"<|im_start|>user\n{question.message}<|im_end|>\n<|im_start|>assistant\n"
    assert completion(question.answer) == question.answer


@pytest.mark.slow
def test_the_chat_model_answers_in_chat_form_and_keeps_the_plain_one(
    world_model: tuple[Any, Any], tmp_path: Path
) -> None:
    from nullarm.models.load import load_causal_lm

    note = build("world-chat", tmp_path / "chat", lambda _: None)
    assert set(note["scores"]) == {"plain", "chat"}
    chat, world = load_causal_lm(str(tmp_path / "chat")), World()
    before, after = (mean(examine(*pair, world, 60, chat=True)) for pair in (world_model, chat))
    assert before < 0.5 < 0.75 < after
    assert mean(examine(*chat, world, 60)) > 0.9


def mean(scores: dict[str, float]) -> float:
    return sum(scores.values()) / len(scores)
