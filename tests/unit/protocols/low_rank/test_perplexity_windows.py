"""Streams of tokens and the windows that they are cut into."""

import copy
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import ByT5Tokenizer

from nullarm.errors import ModelError, StudyError
from nullarm.models.load import load_tokenizer
from nullarm.models.texts import Document
from nullarm.protocols.low_rank.perplexity.streams import Stream, tokenise
from nullarm.protocols.low_rank.perplexity.windows import windows

TEXTS = st.text(st.sampled_from("ab 1.\n\té→𝔘語"), min_size=1, max_size=40)


@cache
def tokenizer(begins: bool) -> Any:
    made = copy.deepcopy(load_tokenizer("random:tiny-llama"))
    if begins:
        made.bos_token = "<|im_start|>"
    return made


def documents(*texts: str) -> list[Document]:
    return [Document(f"d{n}", text) for n, text in enumerate(texts)]


def stream_of(tokens: int) -> Stream:
    """A stream of tokens of one character each."""
    return Stream("x" * tokens, np.arange(tokens), np.arange(1, tokens + 1), ("d",), (0,))


@given(tokens=st.integers(1, 60), length=st.integers(1, 20), share=st.floats(0, 1))
def test_every_token_but_the_first_is_scored_once(tokens: int, length: int, share: float) -> None:
    stride = max(1, round(share * length))
    found = windows([stream_of(tokens)], length=length, stride=stride)
    assert [int(n) for window in found for n in window.ids[-window.scored :]] == list(range(1, tokens))
    for number, window in enumerate(found):
        assert len(window.ids) <= length + 1
        assert window.ids[0] == number * stride
        assert list(window.ids) == list(range(window.ids[0], window.ids[0] + len(window.ids)))


@given(tokens=st.integers(2, 60), length=st.integers(1, 20), stride=st.integers(1, 20))
def test_a_scored_token_has_the_context_that_was_promised(tokens: int, length: int, stride: int) -> None:
    for window in windows([stream_of(tokens)], length=max(length, stride), stride=stride)[1:]:
        assert len(window.ids) - window.scored == max(length, stride) - stride + 1


@settings(deadline=None)
@given(texts=st.lists(TEXTS, min_size=1, max_size=3), joined=st.booleans(), length=st.integers(1, 8))
def test_windows_add_up_to_the_text(texts: list[str], joined: bool, length: int) -> None:
    streams = tokenise(documents(*texts), tokenizer(True), joined=joined)
    whole = ["\n\n".join(texts)] if joined else texts
    assert [stream.text for stream in streams] == whole
    found = windows(streams, length=length, stride=max(1, length // 2))
    assert sum(window.scored for window in found) == sum(len(stream.ids) - 1 for stream in streams)
    assert sum(window.bytes for window in found) == sum(len(text.encode()) for text in whole)
    assert sum(window.words for window in found) == sum(len(text.split()) for text in whole)


@settings(deadline=None)
@given(text=TEXTS)
def test_without_a_beginning_token_the_first_is_left_out(text: str) -> None:
    [stream] = tokenise(documents(text), tokenizer(False))
    rest = text[int(stream.ends[0]) :]
    found = windows([stream], length=4, stride=3)
    assert sum(window.bytes for window in found) == len(rest.encode())
    assert sum(window.scored for window in found) == len(stream.ids) - 1


def test_a_document_begins_with_the_beginning_token() -> None:
    plain, begun = (tokenise(documents("one cat", "two"), tokenizer(begins)) for begins in (False, True))
    for without, with_it in zip(plain, begun, strict=True):
        assert with_it.ids.tolist() == [tokenizer(True).bos_token_id, *without.ids.tolist()]
        assert with_it.ends.tolist() == [0, *without.ends.tolist()]


def test_windows_are_named_after_their_document() -> None:
    streams = tokenise(documents("cat dog", "box lamp"), tokenizer(True))
    assert [w.item for w in windows(streams, length=1, stride=1) if w.cluster == "d1"][:2] == ["d1/0", "d1/1"]
    joined = tokenise(documents("cat dog", "box lamp"), tokenizer(True), joined=True)
    found = windows(joined, length=1, stride=1)
    assert {w.cluster for w in found} == {"d0", "d1"}
    assert len({w.item for w in found}) == len(found)
    assert [w.cluster for w in found] == sorted(w.cluster for w in found)


def test_a_word_is_counted_where_it_begins() -> None:
    [stream] = tokenise(documents(" naïve  cat"), tokenizer(True))
    assert stream.words(0, len(stream.text)) == 2
    assert (stream.words(0, 3), stream.words(3, 8), stream.words(8, 11)) == (1, 0, 1)
    assert stream.bytes(0, 6) == 7


@pytest.mark.parametrize("limit", [1, 5, 9, 1000])
def test_a_limit_cuts_from_the_front(limit: int) -> None:
    given = documents("cat dog box", "lamp key map", "cup pen coin")
    whole = np.concatenate([stream.ids for stream in tokenise(given, tokenizer(True))])
    cut = tokenise(given, tokenizer(True), limit=limit)
    assert np.concatenate([stream.ids for stream in cut]).tolist() == whole[:limit].tolist()
    assert all(len(stream.ids) == len(stream.ends) > 0 for stream in cut)


def test_a_limited_text_counts_only_what_it_reads() -> None:
    [stream] = tokenise(documents("cat dog box lamp key"), tokenizer(True), limit=4)
    found = windows([stream], length=8, stride=8)
    assert sum(window.bytes for window in found) == stream.ends[-1] < len(stream.text)


def test_a_single_token_has_no_window() -> None:
    assert windows([stream_of(1)], length=4, stride=4) == []


@pytest.mark.parametrize("stride", [0, 9])
def test_a_stride_that_loses_tokens_is_refused(stride: int) -> None:
    with pytest.raises(StudyError, match=rf"stride of the windows is out of range; got {stride}; valid: 1 to .* 8"):
        windows([stream_of(20)], length=8, stride=stride)


def test_a_tokeniser_without_offsets_is_refused() -> None:
    with pytest.raises(ModelError, match="does not tell which characters a token stands for; got 'ByT5Tokenizer'"):
        tokenise(documents("cat"), ByT5Tokenizer())
