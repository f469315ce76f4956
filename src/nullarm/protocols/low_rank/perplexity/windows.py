"""Sliding windows: every token but a stream's first is predicted once, whatever the stride."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nullarm.errors import StudyError
from nullarm.protocols.low_rank.perplexity.streams import Ids, Stream


@dataclass(frozen=True, eq=False)
class Window:
    """What the model reads in one pass, and how much of it counts.

    Attributes:
        item: Document and number of the window, `doc/3`.
        cluster: The document that the first scored token is in.
        ids: Token ids `[tokens read + 1]`; the last is only predicted.
        scored: How many of the last ids are scored.
        words: Words that begin among the characters of the scored tokens.
        bytes: Bytes of these characters in UTF-8.
    """

    item: str
    cluster: str
    ids: Ids
    scored: int
    words: int
    bytes: int


def windows(streams: Sequence[Stream], *, length: int, stride: int) -> list[Window]:
    """Windows that read `length` tokens and begin `stride` tokens after each other.

    The first of a stream scores what it reads but the stream's first token, and one more; a later one scores the
    `stride` tokens after those, given at least length − stride + 1 tokens. That is the loop of Hugging Face's guide to
    perplexity with a maximal length of `length` + 1, except that with stride = length no token goes unscored.

    Args:
        streams: From `tokenise`. One with a single token has no window.
        length: Tokens that the model reads at once, at most.
        stride: From one window to the next; `length` for windows that share no token but one.

    Raises:
        StudyError: The stride is not between 1 and the length.
    """
    if not 1 <= stride <= length:
        raise StudyError(
            "the stride of the windows is out of range", value=stride, valid=f"1 to their length, {length}"
        )
    return [window for stream in streams for window in _of_stream(stream, length, stride)]


def _of_stream(stream: Stream, length: int, stride: int) -> Iterator[Window]:
    number, last = 0, 1
    while last < len(stream.ids):
        start = number * stride
        first, last = last, min(start + length + 1, len(stream.ids))
        begin, end = int(stream.ends[first - 1]), int(stream.ends[last - 1])
        document = stream.document_at(begin)
        yield Window(
            item=f"{document}/{number}",
            cluster=document,
            ids=stream.ids[start:last],
            scored=last - first,
            words=stream.words(begin, end),
            bytes=stream.bytes(begin, end),
        )
        number += 1
