"""Items of a task as the lessons of a fuser: encoded for both models, none longer than they can read."""

from __future__ import annotations

from collections.abc import Sequence

from nullarm.errors import DatasetError
from nullarm.models.tasks.base import AnsweredTask, Item
from nullarm.protocols.kv_communication.cells.lessons import Lesson
from nullarm.protocols.kv_communication.channels.participants import Participant
from nullarm.protocols.kv_communication.communication.exchange import exchanges
from nullarm.protocols.kv_communication.communication.rendering import all_completion_ids
from nullarm.protocols.kv_communication.parameters import Alignment


def lessons_of(
    task: AnsweredTask,
    items: Sequence[Item],
    receiver: Participant,
    sharer: Participant,
    *,
    alignment: Alignment,
    chat_template: bool,
    answer_prefix: str,
    max_tokens: int | None,
) -> list[Lesson]:
    """Every item with its answer, which ends with the receiver's end of text.

    Args:
        task: Where the items are from.
        items: Of its training split.
        receiver: The model that answers.
        sharer: The model that sends.
        alignment: Of tokens across tokenisers.
        chat_template: Whether prompts are put into chat templates.
        answer_prefix: What every answer begins with.
        max_tokens: Items that have more for either model are left out, which is said.

    Raises:
        DatasetError: There is no item, or none short enough, or one is longer than a model's context.
    """
    if not items:
        raise DatasetError("the training set is empty", next_command="check the task's training split")
    prompts, tokenizer = [item.prompt for item in items], receiver.tokenizer
    heard = exchanges(
        prompts, tokenizer, [sharer.tokenizer], chat_template=chat_template, answer_prefix=answer_prefix,
        alignment=alignment,
    )  # fmt: skip
    completions = [task.completion(item.answer) for item in items]
    answers = all_completion_ids(tokenizer, [(e.receiver, c) for e, c in zip(heard, completions, strict=True)])
    lessons = [Lesson(e, [*ids, tokenizer.eos_token_id]) for e, ids in zip(heard, answers, strict=True)]
    kept = list(range(len(items))) if max_tokens is None else _short_enough(lessons, max_tokens)
    for at in kept:
        _refuse_too_long(items[at], lessons[at], receiver, sharer)
    return [lessons[at] for at in kept]


def _short_enough(lessons: Sequence[Lesson], max_tokens: int) -> list[int]:
    """Places of the lessons that have no more tokens than this for either model."""
    kept = [at for at, lesson in enumerate(lessons) if max(lesson.tokens) <= max_tokens]
    if not kept:
        raise DatasetError(
            "every training item is longer than `max_tokens`",
            value=max_tokens,
            valid=f"from {min(max(lesson.tokens) for lesson in lessons)}",
        )
    if left_out := len(lessons) - len(kept):
        print(f"{left_out} of {len(lessons)} training items have more than {max_tokens} tokens: left out", flush=True)
    return kept


def _refuse_too_long(item: Item, lesson: Lesson, receiver: Participant, sharer: Participant) -> None:
    """Refuse what a model has no positions for: some fail on it, others learn from what is wrong."""
    for role, who, tokens in zip(("receiver", "sharer"), (receiver, sharer), lesson.tokens, strict=True):
        most = getattr(who.model.config, "max_position_embeddings", None)
        if most is not None and tokens > most:
            raise DatasetError(
                f"training item {item.id!r} is longer than the {role}'s context",
                value=f"{tokens} tokens",
                valid=f"up to {most}",
                next_command="set the fuser's `max_tokens`, and longer items are left out",
            )
