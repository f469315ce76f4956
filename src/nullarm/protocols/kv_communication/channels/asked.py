"""What a channel is asked, what it answers, and how long each step takes."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from math import isnan
from typing import Any

import torch

from nullarm.errors import DatasetError, InvalidResult
from nullarm.models.tasks.base import AnsweredTask, Item
from nullarm.protocols.kv_communication.channels.participants import Participant
from nullarm.protocols.kv_communication.communication.answer import choice_log_likelihoods, generate, stop_ids_of
from nullarm.protocols.kv_communication.communication.prefill import Prefilled, refuse_too_long
from nullarm.protocols.kv_communication.communication.rendering import Rendered, all_completion_ids


@dataclass(frozen=True)
class Asked:
    """One item, and for the control `shuffled` the other item that the sharer hears instead."""

    item: Item
    other: Item


@dataclass(frozen=True)
class Answered:
    """What became of one item.

    Attributes:
        item: The item.
        correct: Whether the answer is right; an error is not.
        prediction: What was chosen or said.
        log_likelihood: Of the right answer, nats per token; None where answers are generated, or there was an error.
        error: Why there is no answer.
        counts: Integer columns of the table, by name.
        seconds: Its share of the batch's time, by step.
    """

    item: Item
    correct: bool
    prediction: str
    log_likelihood: float | None = None
    error: str | None = None
    counts: Mapping[str, int | None] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Question:
    """What the model that answers is asked.

    Attributes:
        item: The item.
        prompt: What the model reads.
        completions: Tokens of each choice; none where answers are generated.
    """

    item: Item
    prompt: Rendered
    completions: list[list[int]]


class Answerer(ABC):
    """One way in which items are answered: a channel at work."""

    @abstractmethod
    def answer(self, batch: Sequence[Asked]) -> list[Answered]:
        """The answers to a batch of items, in their order.

        Raises:
            DatasetError: An item cannot be asked.
            InvalidResult: A cache cannot be sent, or logits are not numbers.
            MessageError: A message cannot be read.
        """


@dataclass(frozen=True)
class Answering:
    """How answers are taken from a cache.

    Attributes:
        task: Where the items are from.
        by_likelihood: The likeliest choice; otherwise what a greedy continuation says.
        max_new_tokens: Most tokens of a continuation.
        chat_template: Whether prompts are put into chat templates.
        answer_prefix: What every answer begins with.
    """

    task: AnsweredTask
    by_likelihood: bool
    max_new_tokens: int
    chat_template: bool
    answer_prefix: str

    @property
    def rendering(self) -> dict[str, Any]:
        """How prompts are put, as arguments of `all_rendered`, `exchanges` and `readings`."""
        return {"chat_template": self.chat_template, "answer_prefix": self.answer_prefix}

    def questions(self, who: Participant, items: Sequence[Item], prompts: Sequence[Rendered]) -> list[Question]:
        """What is asked, item by item, before anything is run.

        Args:
            who: The model that answers.
            items: What is asked.
            prompts: What the model reads.

        Raises:
            DatasetError: An item has no choices, or is with its answer longer than the model's context.
        """
        completions = self._completions(who, items, prompts) if self.by_likelihood else [[] for _ in items]
        found = [Question(*parts) for parts in zip(items, prompts, completions, strict=True)]
        for question in found:
            longest = max(map(len, question.completions)) if self.by_likelihood else self.max_new_tokens
            refuse_too_long(who.model, len(question.prompt.ids) + longest - 1)  # the last token is not run
        return found

    def answers(
        self, who: Participant, cache: Prefilled, questions: Sequence[Question]
    ) -> list[tuple[bool, str, float | None, int]]:
        """Whether right, what was said, log-likelihood of the right answer, tokens written; item by item.

        Args:
            who: The model that answers.
            cache: Of the prompts but for their last tokens.
            questions: What is asked.

        Raises:
            InvalidResult: The model's logits are not numbers.
        """
        last = [question.prompt.ids[-1] for question in questions]
        if self.by_likelihood:
            scores = choice_log_likelihoods(who.model, cache, last, [question.completions for question in questions])
            return [_likeliest(question, values) for question, values in zip(questions, scores, strict=True)]
        written = generate(who.model, cache, last, self.max_new_tokens, stop_ids_of(who.model))
        return [self._judged(who, question, ids) for question, ids in zip(questions, written, strict=True)]

    def _completions(
        self, who: Participant, items: Sequence[Item], prompts: Sequence[Rendered]
    ) -> list[list[list[int]]]:
        for item in items:
            if not item.choices:
                raise DatasetError("an item has no choices", value=item.id, valid="`answer_by: generation`")
        pairs = [
            (prompt, self.task.completion(choice))
            for item, prompt in zip(items, prompts, strict=True)
            for choice in item.choices
        ]
        ids = iter(all_completion_ids(who.tokenizer, pairs))
        return [list(islice(ids, len(item.choices))) for item in items]

    def _judged(
        self, who: Participant, question: Question, ids: list[int] | None
    ) -> tuple[bool, str, float | None, int]:
        if ids is None:
            raise _not_numbers(question)
        text = who.tokenizer.decode(ids, skip_special_tokens=True)
        said = self.task.extract(f"{self.answer_prefix}{text}")
        right = said is not None and said == self.task.extract(question.item.answer)
        return right, text.strip() if said is None else said, None, len(ids)


def _likeliest(question: Question, scores: Sequence[float]) -> tuple[bool, str, float | None, int]:
    if any(map(isnan, scores)):
        raise _not_numbers(question)
    item = question.item
    best, right = item.choices[scores.index(max(scores))], item.choices.index(item.answer)
    return best == item.answer, best, scores[right] / len(question.completions[right]), 0


def _not_numbers(question: Question) -> InvalidResult:
    return InvalidResult("the receiver's logits are not numbers", value=question.item.id)


class Clock:
    """Seconds by step, until the device is done with it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        """Count what happens within to a step."""
        start = time.perf_counter()
        yield
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds[step] += time.perf_counter() - start

    def each(self, items: int) -> dict[str, float]:
        """The share of one of so many items."""
        return {step: seconds / items for step, seconds in self.seconds.items()}
