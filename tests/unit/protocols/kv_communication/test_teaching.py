"""Items as lessons: their answers, their alignment, and those that are too long."""

from __future__ import annotations

from typing import Any

import pytest
from communication_models import tiny
from communication_tokenizers import byte_bpe

from nullarm.errors import DatasetError
from nullarm.models.tasks.base import Item
from nullarm.protocols.kv_communication.cells.lessons import Lesson
from nullarm.protocols.kv_communication.cells.teaching import lessons_of
from nullarm.protocols.kv_communication.channels.participants import Participant
from nullarm.protocols.kv_communication.planning import answered_task

TASK = answered_task({"kind": "world_relations"})
ITEMS = [Item("short", "the cat", "sat"), Item("long", "the cat sat on the cat that sat", "at")]


def lessons(items: list[Item] = ITEMS, *, mine: int = 64, theirs: int = 64, **changes: Any) -> list[Lesson]:
    """A receiver whose tokens are words, a sharer whose are bytes, and how many positions they have."""
    receiver = Participant(tiny("tiny-qwen3", max_position_embeddings=mine), byte_bpe())
    sharer = Participant(tiny("tiny-llama", max_position_embeddings=theirs), byte_bpe([]))
    how: dict[str, Any] = {"alignment": "offsets", "chat_template": False, "answer_prefix": "", "max_tokens": None}
    return lessons_of(TASK, items, receiver, sharer, **{**how, **changes})


def test_an_answer_is_what_follows_the_prompt_and_the_end_of_text() -> None:
    tokenizer = byte_bpe()
    for item, lesson in zip(ITEMS, lessons(answer_prefix=" so:"), strict=True):
        *answer, end = lesson.answer
        assert tokenizer.decode(lesson.exchange.receiver_ids) == f"{item.prompt} so:"
        assert tokenizer.decode(answer) == TASK.completion(item.answer)
        assert end == tokenizer.eos_token_id
        assert lesson.tokens == (len(lesson.exchange.receiver_ids) + len(answer) + 1, len(f"{item.prompt} so:"))


def test_the_alignment_is_the_one_that_was_asked_for() -> None:
    by_offsets, by_id = lessons(), lessons(alignment="one_id")
    for own, legacy in zip(by_offsets, by_id, strict=True):
        assert len(legacy.exchange.sharers[0].ids) == len(legacy.exchange.receiver_ids)
        assert len(own.exchange.sharers[0].ids) > len(own.exchange.receiver_ids)


def test_longer_items_are_left_out_and_counted(capsys: pytest.CaptureFixture[str]) -> None:
    most = max(lessons()[0].tokens)
    kept = lessons(max_tokens=most)

    assert kept == lessons()[:1]
    assert capsys.readouterr().out == f"1 of 2 training items have more than {most} tokens: left out\n"
    assert lessons(max_tokens=64) == lessons()
    assert capsys.readouterr().out == ""
    with pytest.raises(DatasetError, match=f"longer than `max_tokens`; got {most - 1}; valid: from {most}$"):
        lessons(max_tokens=most - 1)


@pytest.mark.parametrize(("role", "side"), [("receiver", 0), ("sharer", 1)])
def test_an_item_that_is_longer_than_a_context_is_named(role: str, side: int) -> None:
    tokens = lessons()[1].tokens[side]
    fits: dict[str, Any] = {"mine" if role == "receiver" else "theirs": tokens}
    assert len(lessons(**fits)) == 2
    words = (
        f"training item 'long' is longer than the {role}'s context; got '?{tokens} tokens'?; valid: up to {tokens - 1}"
    )
    short: dict[str, Any] = {name: n - 1 for name, n in fits.items()}
    with pytest.raises(DatasetError, match=words):
        lessons(**short)
    assert lessons(max_tokens=max(lessons()[0].tokens), **short) == lessons()[:1]


def test_no_items_are_no_training_set() -> None:
    with pytest.raises(DatasetError, match="the training set is empty"):
        lessons([])
