"""Which token of the sharer each token of the receiver takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nullarm.errors import ModelError
from nullarm.protocols.kv_communication.communication.rendering import Rendered, Span, name_of, tokens_and_spans

NOTHING = -1
"""In place of a token of the sharer: this token of the receiver is not fused."""


def by_offsets(receiver: Rendered, sharer: Rendered) -> list[int]:
    """For every token of the receiver, the last token of the sharer that covers its last character.

    What the sharer has for that token has then read all that the receiver's token stands for, and of several tokens
    of one character (bytes) the last has. Where both read the same tokens of the same text, each takes its own.

    Returns:
        Indices of the sharer's tokens; -1 for a token that ends outside of what both texts share, or stands for no
        character. Texts that are equal share everything, others the user's message and the beginning of the answer.

    Raises:
        ModelError: A tokeniser that differs from the other does not tell offsets.
    """
    if receiver == sharer:
        return list(range(len(receiver.ids)))
    if receiver.spans is None or sharer.spans is None:
        raise ModelError(
            "tokenizers that differ are aligned by character offsets, which only fast ones tell",
            value="a slow tokenizer",
            valid="fast tokenizers, or `alignment: one_id`",
        )
    readers, places = _last_readers(sharer.spans, len(sharer.text)), _places(receiver, sharer)
    return [readers[places[end - 1]] if begin < end and end - 1 in places else NOTHING for begin, end in receiver.spans]


def one_id_each(receiver: Rendered, receiver_tokenizer: Any, sharer_tokenizer: Any) -> tuple[list[int], list[int]]:
    """The original's alignment: each of the receiver's tokens as one token of the sharer, which reads those.

    A token's text is encoded anew by the sharer's tokeniser, and of what comes out only the id that covers most
    characters is kept, the first of several.

    Returns:
        The sharer's tokens, as many as the receiver's, and for each of the receiver's the same index; -1 where its text
        is nothing to the sharer, which reads an unknown token there.

    Raises:
        ModelError: The sharer's tokeniser does not tell offsets.
    """
    texts = receiver_tokenizer.batch_decode([[i] for i in receiver.ids], clean_up_tokenization_spaces=False)
    different = list(dict.fromkeys(texts))
    longest = dict(zip(different, _longest(sharer_tokenizer, different), strict=True))
    found = [longest[text] for text in texts]
    stand_in = _unknown(sharer_tokenizer)
    ids = [stand_in if i is None else i for i in found]
    return ids, [NOTHING if i is None else place for place, i in enumerate(found)]


def _places(receiver: Rendered, sharer: Rendered) -> dict[int, int]:
    """Where each character of the receiver's text that both share stands in the sharer's."""
    if receiver.text == sharer.text:
        return {place: place for place in range(len(receiver.text))}
    shared = ((receiver.message, sharer.message), (receiver.answer_prefix, sharer.answer_prefix))
    return {mine: theirs for ours, others in shared for mine, theirs in zip(range(*ours), range(*others), strict=True)}


def _last_readers(spans: list[Span], characters: int) -> list[int]:
    """For every character the last token that covers it."""
    readers = [NOTHING] * characters
    for token, (start, end) in enumerate(spans):
        readers[start:end] = [token] * (end - start)
    return readers


def _longest(tokenizer: Any, texts: Sequence[str]) -> list[int | None]:
    """Of each text the token that covers most characters."""
    found = []
    for ids, spans in tokens_and_spans(tokenizer, texts, special_tokens=False):
        if spans is None:
            raise ModelError(
                "the longest part of a token is found by character offsets, which only fast tokenizers tell",
                value=name_of(tokenizer),
                valid="a sharer with a fast tokenizer",
            )
        widths = [end - start for start, end in spans]
        found.append(ids[widths.index(max(widths))] if ids else None)
    return found


def _unknown(tokenizer: Any) -> int:
    known = (tokenizer.unk_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id)
    return next((i for i in known if i is not None), 0)
