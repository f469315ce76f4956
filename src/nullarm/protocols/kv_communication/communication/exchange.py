"""What receiver and sharers read for one item, and which tokens of the sharers the receiver's tokens take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nullarm.protocols.kv_communication.communication.alignment import NOTHING, by_offsets, one_id_each
from nullarm.protocols.kv_communication.communication.rendering import Rendered, all_rendered
from nullarm.protocols.kv_communication.parameters import Alignment


@dataclass(frozen=True)
class Heard:
    """What one sharer reads.

    Attributes:
        ids: Its own tokens.
        source: For every token of the receiver the index of the sharer's token that it takes, or -1: not fused. The
            last is -1, for the receiver's last token is run on the fused cache.
    """

    ids: list[int]
    source: list[int]

    @property
    def wanted(self) -> list[int]:
        """Those of its tokens that are taken at all, ascending: what has to be sent."""
        return sorted(set(self.source) - {NOTHING})


@dataclass(frozen=True)
class Exchange:
    """One item between a receiver and its sharers.

    Attributes:
        receiver: What the receiver reads, the whole prompt.
        sharers: One per sharer.
    """

    receiver: Rendered
    sharers: tuple[Heard, ...]

    @property
    def receiver_ids(self) -> list[int]:
        """The receiver's tokens; all but the last are its prefix, whose cache is fused."""
        return self.receiver.ids


def exchanges(
    prompts: Sequence[str],
    receiver_tokenizer: Any,
    sharer_tokenizers: Sequence[Any],
    *,
    chat_template: bool = False,
    answer_prefix: str = "",
    alignment: Alignment = "offsets",
) -> list[Exchange]:
    """From items' prompts to what every model reads.

    Args:
        prompts: The items' prompts, at least one; each tokeniser reads them in one go.
        receiver_tokenizer: Of the model that answers.
        sharer_tokenizers: Of the models that send, which read the prompts in their own chat templates and tokens.
        chat_template: Put each prompt into each model's own chat template, as one user message, thinking off.
        answer_prefix: What the answer begins with.
        alignment: Across tokenisers: `offsets`, by characters; `one_id`, as the original did. Where the tokens of both
            are the same, they are the alignment.

    Raises:
        DatasetError: A prompt has no tokens, or a chat template does not render it as it is.
        ModelError: A chat template is missing or renders no prompt, or a tokeniser does not tell offsets.
    """
    own, *others = (
        all_rendered(tokenizer, prompts, chat_template=chat_template, answer_prefix=answer_prefix)
        for tokenizer in (receiver_tokenizer, *sharer_tokenizers)
    )

    def heard(receiver: Rendered, sharer: Rendered, tokenizer: Any) -> Heard:
        if alignment == "one_id" and receiver != sharer:
            return _but_last(*one_id_each(receiver, receiver_tokenizer, tokenizer))
        return _but_last(sharer.ids, by_offsets(receiver, sharer))

    return [
        Exchange(receiver, tuple(heard(receiver, *one) for one in zip(sharers, sharer_tokenizers, strict=True)))
        for receiver, *sharers in zip(own, *others, strict=True)
    ]


def overheard(own: Exchange, other: Exchange) -> Exchange:
    """The control `shuffled`: the receiver reads its own item, while the sharers read another one's.

    Each token of the receiver takes the sharer's token of the same place as in its own item, or the last where the
    other item is shorter.
    """
    pairs = zip(own.sharers, other.sharers, strict=True)
    return Exchange(own.receiver, tuple(_misplaced(mine.source, theirs.ids) for mine, theirs in pairs))


def _misplaced(source: list[int], ids: list[int]) -> Heard:
    return Heard(ids, [min(place, len(ids) - 1) for place in source])


def _but_last(ids: list[int], source: list[int]) -> Heard:
    return Heard(ids, [*source[:-1], NOTHING])
