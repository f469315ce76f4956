"""From documents to tokens that still know which characters they stand for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from nullarm.errors import ModelError
from nullarm.models.texts.base import Document

Ids = npt.NDArray[np.int64]

BETWEEN = "\n\n"
"""Between documents that are joined, as where WikiText is read in one piece."""


@dataclass(frozen=True, eq=False)
class Stream:
    """A text as the model reads it, from its beginning.

    Attributes:
        text: The characters.
        ids: Token ids `[tokens]`, the beginning token first where the tokeniser has one.
        ends: Characters up to and with each token `[tokens]`, never falling: together the tokens own every character
            once. White space that the tokeniser drops belongs to the token after it, or to the last.
        documents: Ids of the documents in it.
        starts: Character at which each of them begins.
    """

    text: str
    ids: Ids
    ends: Ids
    documents: tuple[str, ...]
    starts: tuple[int, ...]

    def words(self, start: int, end: int) -> int:
        """Words, in between white space, that begin at one of these characters."""
        first, last = np.searchsorted(self._word_starts, (start, end))
        return int(last - first)

    def bytes(self, start: int, end: int) -> int:
        """Bytes of these characters in UTF-8."""
        return int(self._bytes_before[end] - self._bytes_before[start])

    def document_at(self, character: int) -> str:
        """The document that a character is in."""
        return self.documents[int(np.searchsorted(self.starts, character, side="right")) - 1]

    @cached_property
    def _word_starts(self) -> Ids:
        return np.fromiter((m.start() for m in re.finditer(r"\S+", self.text)), np.int64)

    @cached_property
    def _bytes_before(self) -> Ids:
        points = np.frombuffer(self.text.encode("utf-32-le"), "<u4")
        sizes = 1 + (points >= 0x80) + (points >= 0x800) + (points >= 0x10000)
        return np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])


def tokenise(
    documents: Sequence[Document], tokenizer: Any, *, joined: bool = False, limit: int | None = None
) -> list[Stream]:
    """Tokens of a text, a stream for each document.

    Args:
        documents: The documents, in their order.
        tokenizer: A tokeniser that tells offsets.
        joined: Read them as one stream, a blank line between two, with one beginning token.
        limit: Most tokens, from the front; later documents are not looked at.

    Raises:
        ModelError: The tokeniser does not tell which characters a token stands for.
    """
    if not tokenizer.is_fast:
        raise ModelError(
            "the tokeniser does not tell which characters a token stands for",
            value=type(tokenizer).__name__,
            valid="a tokeniser with a tokenizer.json",
        )
    streams: list[Stream] = []
    for group in [documents] if joined else [[document] for document in documents]:
        left = None if limit is None else limit - sum(len(stream.ids) for stream in streams)
        if left == 0:
            break
        stream = _stream(group, tokenizer)
        streams.append(replace(stream, ids=stream.ids[:left], ends=stream.ends[:left]))
    return streams


def _stream(documents: Sequence[Document], tokenizer: Any) -> Stream:
    text = BETWEEN.join(document.text for document in documents)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    ids = np.array([*begin, *encoded["input_ids"]], np.int64)
    ends = np.array([*(0 for _ in begin), *(end for _, end in encoded["offset_mapping"])], np.int64)
    ends[-1:] = len(text)
    return Stream(
        text=text,
        ids=ids,
        ends=np.maximum.accumulate(ends),
        documents=tuple(document.id for document in documents),
        starts=tuple(_starts(document.text for document in documents)),
    )


def _starts(texts: Iterable[str]) -> Iterable[int]:
    start = 0
    for text in texts:
        yield start
        start += len(text) + len(BETWEEN)
