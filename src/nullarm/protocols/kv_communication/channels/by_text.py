"""Text-to-text: the sharer writes, the receiver reads what it wrote and answers."""

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
from nullarm.protocols.kv_communication.communication.text import reading, written
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
        clock, chat = Clock(), self.answering.chat_template
        with clock("sharer_s"):
            texts = written(
                self.sharer.model, self.sharer.tokenizer, [a.item.prompt for a in batch], self.settings,
                chat_template=chat, text_bytes=self.text_bytes,
            )  # fmt: skip
        prompts = [
            reading(
                self.receiver.tokenizer, a.item.prompt, text, self.settings, **self.answering.rendering
            )
            for a, text in zip(batch, texts, strict=True)
        ]  # fmt: skip
        for prompt in prompts:
            refuse_too_long(self.receiver, prompt.ids, self.answering.max_new_tokens)
        with clock("receiver_s"):
            cache = prefill(self.receiver.model, [prompt.ids[:-1] for prompt in prompts])
        with clock("answer_s"):
            answers = self.answering.answers(self.receiver, cache, prompts, [a.item for a in batch])
        return [
            Answered(
                a.item, right, said, likelihood,
                counts={
                    "input_tokens": len(prompt.ids), "output_tokens": tokens,
                    "message_bytes": len(text.encode()), "formula_bytes": len(text.encode()),
                },
                seconds=clock.each(len(batch)),
            )
            for a, prompt, text, (right, said, likelihood, tokens) in zip(batch, prompts, texts, answers, strict=True)
        ]  # fmt: skip
