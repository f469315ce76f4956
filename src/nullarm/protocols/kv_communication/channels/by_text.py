"""Text-to-text: the sharer writes, the receiver reads what it wrote and answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nullarm.protocols.kv_communication.channels.asked import Answered, Answerer, Answering, Asked, Clock
from nullarm.protocols.kv_communication.channels.participants import Participant
from nullarm.protocols.kv_communication.communication.prefill import prefill
from nullarm.protocols.kv_communication.communication.text import readings, written
from nullarm.protocols.kv_communication.parameters import Text


@dataclass(frozen=True)
class ByText(Answerer):
    """The message is UTF-8; its bytes are what is sent."""

    receiver: Participant
    sharer: Participant
    settings: Text
    text_bytes: int | None
    answering: Answering

    def answer(self, batch: Sequence[Asked]) -> list[Answered]:
        """The receiver's answers after it has read the sharer's texts."""
        clock, items = Clock(), [a.item for a in batch]
        asked = [item.prompt for item in items]
        with clock("sharer_s"):
            texts = written(
                self.sharer.model, self.sharer.tokenizer, asked, self.settings,
                chat_template=self.answering.chat_template, text_bytes=self.text_bytes,
            )  # fmt: skip
        prompts = readings(self.receiver.tokenizer, asked, texts, self.settings, **self.answering.rendering)
        questions = self.answering.questions(self.receiver, items, prompts)
        with clock("receiver_s"):
            cache = prefill(self.receiver.model, [prompt.ids[:-1] for prompt in prompts])
        with clock("answer_s"):
            answers = self.answering.answers(self.receiver, cache, questions)
        rows = zip(items, prompts, texts, answers, strict=True)
        return [
            Answered(
                item, right, said, likelihood,
                counts={
                    "input_tokens": len(prompt.ids), "output_tokens": tokens,
                    "message_bytes": len(text.encode()), "formula_bytes": len(text.encode()),
                },
                seconds=clock.each(len(batch)),
            )
            for item, prompt, text, (right, said, likelihood, tokens) in rows
        ]  # fmt: skip
