"""What a channel is asked, what it answers, and how long each step takes."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from nullarm.errors import DatasetError
from nullarm.models.tasks.base import AnsweredTask, Item
from nullarm.protocols.kv_communication.channels.participants import Participant
from nullarm.protocols.kv_communication.communication.answer import choice_log_likelihoods, generate, stop_ids_of
from nullarm.protocols.kv_communication.communication.prefill import Prefilled
from nullarm.protocols.kv_communication.communication.rendering import Rendered, completion_ids


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


class Answerer(ABC):
    """One way in which items are answered: a channel at work."""

    @abstractmethod
    def answer(self, batch: Sequence[Asked]) -> list[Answered]:
        """The answers to a batch of items, in their order.

        Raises:
            DatasetError: An item cannot be asked.
            InvalidResult: A cache cannot be sent.
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
        """How prompts are put, as arguments of `rendered` and `exchange`."""
        return {"chat_template": self.chat_template, "answer_prefix": self.answer_prefix}

    def answers(
        self, who: Participant, cache: Prefilled, prompts: Sequence[Rendered], items: Sequence[Item]
    ) -> list[tuple[bool, str, float | None, int]]:
        """Whether right, what was said, log-likelihood of the right answer, tokens written; item by item.

        Args:
            who: The model that answers.
            cache: Of the prompts but for their last tokens.
            prompts: What the model reads.
            items: What was asked.

        Raises:
            DatasetError: An item has no choices.
        """
        last = [prompt.ids[-1] for prompt in prompts]
        if self.by_likelihood:
            return self._likeliest(who, cache, prompts, items, last)
        written = generate(who.model, cache, last, self.max_new_tokens, stop_ids_of(who.model))
        texts = who.tokenizer.batch_decode(written, skip_special_tokens=True)
        return [self._judged(item, text, len(ids)) for item, text, ids in zip(items, texts, written, strict=True)]

    def _likeliest(
        self, who: Participant, cache: Prefilled, prompts: Sequence[Rendered], items: Sequence[Item], last: list[int]
    ) -> list[tuple[bool, str, float | None, int]]:
        completions = []
        for prompt, item in zip(prompts, items, strict=True):
            if not item.choices:
                raise DatasetError("an item has no choices", value=item.id, valid="`answer_by: generation`")
            words = map(self.task.completion, item.choices)
            completions.append([completion_ids(who.tokenizer, prompt, word) for word in words])
        found: list[tuple[bool, str, float | None, int]] = []
        scores = choice_log_likelihoods(who.model, cache, last, completions)
        for item, ids, values in zip(items, completions, scores, strict=True):
            best = item.choices[values.index(max(values))]
            right = item.choices.index(item.answer)
            found.append((best == item.answer, best, values[right] / len(ids[right]), 0))
        return found

    def _judged(self, item: Item, text: str, tokens: int) -> tuple[bool, str, float | None, int]:
        said = self.task.extract(f"{self.answer_prefix}{text}")
        right = said is not None and said == self.task.extract(item.answer)
        return right, text.strip() if said is None else said, None, tokens


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


def refuse_too_long(who: Participant, ids: Sequence[int], new_tokens: int = 0) -> None:
    """Refuse what a model has no positions for.

    Raises:
        DatasetError: There are too many tokens.
    """
    most = getattr(who.model.config, "max_position_embeddings", None)
    if most is not None and len(ids) + new_tokens > most:
        raise DatasetError("a prompt is longer than the model's context", value=len(ids) + new_tokens, valid=f"{most}")
