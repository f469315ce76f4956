"""A model by itself: the receiver, or the sharer in its place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nullarm.protocols.kv_communication.channels.asked import (
    Answered,
    Answerer,
    Answering,
    Asked,
    Clock,
    refuse_too_long,
)
from nullarm.protocols.kv_communication.channels.participants import Participant
from nullarm.protocols.kv_communication.communication.prefill import prefill
from nullarm.protocols.kv_communication.communication.rendering import rendered


@dataclass(frozen=True)
class Alone(Answerer):
    """Nothing is sent."""

    who: Participant
    answering: Answering

    def answer(self, batch: Sequence[Asked]) -> list[Answered]:
        """The model's own answers."""
        clock = Clock()
        prompts = [rendered(self.who.tokenizer, a.item.prompt, **self.answering.rendering) for a in batch]
        for prompt in prompts:
            refuse_too_long(self.who, prompt.ids, self.answering.max_new_tokens)
        with clock("receiver_s"):
            cache = prefill(self.who.model, [prompt.ids[:-1] for prompt in prompts])
        with clock("answer_s"):
            answers = self.answering.answers(self.who, cache, prompts, [a.item for a in batch])
        return [
            Answered(
                a.item, right, said, likelihood,
                counts={"input_tokens": len(prompt.ids), "output_tokens": written, "formula_bytes": 0},
                seconds=clock.each(len(batch)),
            )
            for a, prompt, (right, said, likelihood, written) in zip(batch, prompts, answers, strict=True)
        ]  # fmt: skip
