"""A model by itself: the receiver, or the sharer in its place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nullarm.protocols.kv_communication.channels.asked import Answered, Answerer, Answering, Asked, Clock
from nullarm.protocols.kv_communication.channels.participants import Participant
from nullarm.protocols.kv_communication.communication.prefill import prefill
from nullarm.protocols.kv_communication.communication.rendering import all_rendered


@dataclass(frozen=True)
class Alone(Answerer):
    """Nothing is sent."""

    who: Participant
    answering: Answering

    def answer(self, batch: Sequence[Asked]) -> list[Answered]:
        """The model's own answers."""
        clock = Clock()
        items = [a.item for a in batch]
        prompts = all_rendered(self.who.tokenizer, [item.prompt for item in items], **self.answering.rendering)
        questions = self.answering.questions(self.who, items, prompts)
        with clock("receiver_s"):
            cache = prefill(self.who.model, [prompt.ids[:-1] for prompt in prompts])
        with clock("answer_s"):
            answers = self.answering.answers(self.who, cache, questions)
        return [
            Answered(
                item, right, said, likelihood,
                counts={"input_tokens": len(prompt.ids), "output_tokens": written, "formula_bytes": 0},
                seconds=clock.each(len(batch)),
            )
            for item, prompt, (right, said, likelihood, written) in zip(items, prompts, answers, strict=True)
        ]  # fmt: skip
