from __future__ import annotations

from typing import Any

import pytest
from transformers import ByT5Tokenizer

from nullarm.errors import ModelError
from nullarm.models.load import load_causal_lm
from nullarm.models.word_tokenizer import word_tokenizer
from nullarm.protocols.residual.parameters import Tracked
from nullarm.protocols.residual.reading.tracked import first_token, resolve


@pytest.fixture(scope="module")
def world() -> Any:
    return load_causal_lm("builtin:world")[1]


def test_ids_strings_texts_and_names_become_labelled_ids(world: Any) -> None:
    cat = world.convert_tokens_to_ids("Ġcat")
    tracked = Tracked(ids=(5,), strings=("Ġcat",), texts=("the",), named={"eos": "<|endoftext|>"})
    labels, notes = resolve(tracked, world)
    the = world("the")["input_ids"][0]
    assert list(labels) == [5, cat, the, world.eos_token_id]
    assert list(labels.values()) == [world.convert_ids_to_tokens(5), "Ġcat", "the", "eos"]
    assert len(notes) == (len(world("the")["input_ids"]) > 1)


def test_a_token_named_again_keeps_its_place_and_takes_the_later_label(world: Any) -> None:
    cat = world.convert_tokens_to_ids("Ġcat")
    labels, _ = resolve(Tracked(ids=(cat, 5), strings=("Ġcat",), texts=(" cat",), named={"cat": "Ġcat"}), world)
    assert list(labels.items()) == [(cat, "cat"), (5, world.convert_ids_to_tokens(5))]


def test_a_text_that_splits_is_tracked_by_its_first_token_with_a_note(world: Any) -> None:
    ids = world("cat catalogues")["input_ids"]
    labels, notes = resolve(Tracked(texts=("cat catalogues",)), world)
    assert list(labels) == ids[:1]
    assert len(notes) == 1
    assert "tracked text 'cat catalogues' splits into [" in notes[0]
    assert notes[0].endswith(f"id {ids[0]}, is tracked")


def test_a_slow_tokenizer_will_do() -> None:
    assert resolve(Tracked(texts=("a",), strings=("b",)), ByT5Tokenizer()) == ({100: "a", 101: "b"}, ())


def test_unknown_tokens_are_named(world: Any) -> None:
    words = word_tokenizer(30)
    with pytest.raises(ModelError, match=r"no token has a tracked id; got 658; valid: ids of the tokenizer, up to 657"):
        resolve(Tracked(ids=(658,)), world)
    with pytest.raises(ModelError, match=r"no token has a tracked id; got -1"):
        resolve(Tracked(ids=(-1,)), world)
    with pytest.raises(ModelError, match=r"not in the tokenizer's vocabulary; got ' cat'; valid: .*Ġcat"):
        resolve(Tracked(strings=(" cat",)), world)
    with pytest.raises(ModelError, match=r"vocabulary; got 'w31'; valid: .*w3"):
        resolve(Tracked(named={"word": "w31"}), words)
    with pytest.raises(ModelError, match=r"does not know a tracked text; got '≈≈'; valid: a string of the vocabulary"):
        resolve(Tracked(texts=("≈≈",)), words)
    with pytest.raises(ModelError, match=r"a tracked text has no tokens; got ''"):
        resolve(Tracked(texts=("",)), world)


def test_the_unknown_token_itself_can_be_meant() -> None:
    assert first_token("w0", word_tokenizer(30)) == (0, None)
