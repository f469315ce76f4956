"""Tokens whose logits are followed: from what a study names to ids of a tokeniser."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

from nullarm.errors import ModelError
from nullarm.protocols.residual.parameters import Tracked


def resolve(tracked: Tracked, tokenizer: Any) -> tuple[dict[int, str], tuple[str, ...]]:
    """Token id to label, in the order ids, strings, texts, names; and notes for people.

    An id is labelled by its vocabulary string. A token that is named more than once stands where it came first and has
    the last label, so that a name of `named` wins.

    Raises:
        ModelError: An id, string or text that the tokeniser does not know.
    """
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    labels = {i: _string_of(i, vocabulary) for i in tracked.ids}
    notes = []
    for string in tracked.strings:
        labels[_id_of(string, vocabulary)] = string
    for text in tracked.texts:
        found, note = first_token(text, tokenizer)
        labels[found] = text
        notes += [note] if note else []
    for name, string in tracked.named.items():
        labels[_id_of(string, vocabulary)] = name
    return labels, tuple(notes)


def first_token(text: str, tokenizer: Any) -> tuple[int, str | None]:
    """Id of the first token of a text, and a note where the text has more than one token.

    Raises:
        ModelError: The text has no tokens, or its first one is the unknown token.
    """
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    vocabulary = tokenizer.get_vocab()
    if not ids:
        raise ModelError("a tracked text has no tokens", value=text, valid="text that the tokenizer encodes")
    if ids[0] == tokenizer.unk_token_id and not text.startswith(tokenizer.unk_token):
        raise ModelError("the tokenizer does not know a tracked text", value=text, valid=_closest(text, vocabulary))
    if len(ids) == 1:
        return ids[0], None
    tokens = tokenizer.convert_ids_to_tokens(ids)
    return ids[0], f"tracked text {text!r} splits into {tokens}; its first token {tokens[0]!r}, id {ids[0]}, is tracked"


def _string_of(token_id: int, vocabulary: dict[str, int]) -> str:
    string = next((string for string, i in vocabulary.items() if i == token_id), None)
    if string is None:
        raise ModelError(
            "no token has a tracked id", value=token_id, valid=f"ids of the tokenizer, up to {max(vocabulary.values())}"
        )
    return string


def _id_of(string: str, vocabulary: dict[str, int]) -> int:
    if string not in vocabulary:
        raise ModelError(
            "a tracked string is not in the tokenizer's vocabulary", value=string, valid=_closest(string, vocabulary)
        )
    return vocabulary[string]


def _closest(string: str, vocabulary: Iterable[str]) -> list[str] | str:
    """The vocabulary strings most like a string."""
    return get_close_matches(string, vocabulary, n=5, cutoff=0.4) or "a string of the vocabulary, such as ĠYes"
