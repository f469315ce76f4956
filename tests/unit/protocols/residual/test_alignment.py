from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from bpes import bpe
from hypothesis import given
from hypothesis import strategies as st
from transformers import ByT5Tokenizer

from nullarm.errors import ModelError
from nullarm.models.load import load_causal_lm
from nullarm.models.word_tokenizer import word_tokenizer
from nullarm.protocols.residual.reading.alignment import positions, relative_layers, shared_vocabulary
from nullarm.protocols.residual.reading.tokens import Encoded, encode
from nullarm.protocols.residual.reading.variants import Variation

COARSE, FINE = bpe(300), bpe(258)


def row(tokenizer: Any, text: str, **options: bool) -> Encoded:
    return encode(tokenizer, [Variation(0, "identity", text)], **options)[0]


def test_the_same_tokens_are_aligned_one_to_one_bytes_of_a_character_included() -> None:
    left = row(FINE, "é😀", add_bos=True)
    assert positions(left, row(bpe(258), "é😀", add_bos=True)) == [(i, i) for i in range(7)]
    slow = row(ByT5Tokenizer(), "é")
    assert positions(slow, slow) == [(0, 0), (1, 1)]


def test_positions_are_those_at_which_both_have_read_the_same_characters() -> None:
    left, right = row(COARSE, "the cat 😀s"), row(FINE, "the cat 😀s")
    assert left.tokens[:2] == ("the", "Ġcat")
    assert len(left.ids) < len(right.ids) == 13
    found = positions(left, right)
    assert found[:2] == [(0, 2), (1, 6)]
    assert found[-2:] == [(len(left.ids) - 2, 11), (len(left.ids) - 1, 12)]  # the last byte of the smile, then "s"
    assert positions(right, left) == [(j, i) for i, j in found]


def test_an_added_bos_is_aligned_with_an_added_bos_only() -> None:
    with_bos = row(COARSE, "the cat", add_bos=True)
    assert positions(with_bos, row(FINE, "the cat", add_bos=True)) == [(0, 0), (1, 3), (2, 7)]
    assert positions(with_bos, row(FINE, "the cat")) == [(1, 2), (2, 6)]


def test_a_token_of_no_characters_does_not_take_the_place_of_bos() -> None:
    left = Encoded(0, "identity", "a", (1, 7, 8), ((0, 0), (0, 0), (0, 1)), ("<s>", "▁", "a"))
    right = Encoded(0, "identity", "a", (1, 5), ((0, 0), (0, 1)), ("<bos>", "a"))
    assert positions(left, right) == [(0, 0), (2, 1)]


def test_words_and_bytes_meet_at_the_ends_of_words() -> None:
    found = positions(row(word_tokenizer(30), "w1 w22"), row(FINE, "w1 w22"))
    assert found == [(0, 1), (1, 5)]


@given(st.text(alphabet="the ca🙂éo,", min_size=1))
def test_aligned_positions_ascend_and_end_at_the_same_character(text: str) -> None:
    left, right = row(COARSE, text), row(FINE, text)
    found = positions(left, right)
    assert left.offsets is not None
    assert right.offsets is not None
    assert found == sorted(found)
    assert found[-1] == (len(left.ids) - 1, len(right.ids) - 1)
    if left.tokens != right.tokens:
        assert all(left.offsets[i][1] == right.offsets[j][1] for i, j in found)
        assert {right.offsets[j][1] for _, j in found} == {end for _, end in left.offsets}  # fine knows all ends


def test_what_cannot_be_aligned_is_refused() -> None:
    with pytest.raises(ModelError, match=r"aligned by character offsets, which only fast ones tell; got .prompt 0"):
        positions(row(ByT5Tokenizer(), "the cat"), row(COARSE, "the cat"))
    with pytest.raises(ModelError, match="the texts of prompt 0, variant 'identity', differ"):
        positions(row(COARSE, "the cat"), replace(row(FINE, "the cat"), text="a cat"))


def test_the_same_vocabulary_shares_all_rows_that_both_have_padding_too() -> None:
    tokenizer = load_causal_lm("builtin:world")[1]
    shared = shared_vocabulary(tokenizer, tokenizer, 704, 672)
    assert shared.prefix == 672
    assert np.array_equal(shared.left_ids, np.arange(672))
    assert shared.left_ids.dtype == shared.right_ids.dtype == np.int64
    assert (shared.left_out_base, shared.left_out_sft, shared.examples) == (32, 0, ())


def test_rows_that_a_side_lacks_are_left_out_and_shown() -> None:
    tokenizer = word_tokenizer(10)
    shared = shared_vocabulary(tokenizer, tokenizer, 10, 7)
    assert (shared.prefix, shared.left_out_base, shared.left_out_sft) == (7, 3, 0)
    assert shared.examples == ("w7", "w8", "w9")


def test_a_vocabulary_that_was_added_to_shares_its_beginning() -> None:
    shared = shared_vocabulary(word_tokenizer(6), word_tokenizer(9), 8, 16)
    assert shared.prefix == 6
    assert (shared.left_out_base, shared.left_out_sft, shared.examples) == (2, 10, ("w6", "w7", "w8"))


def test_shared_tokens_have_the_same_string_and_ascend_on_the_left() -> None:
    world = load_causal_lm("builtin:world")[1]
    shared = shared_vocabulary(world, COARSE, len(world), len(COARSE))
    strings = world.convert_ids_to_tokens(shared.left_ids.tolist())
    assert strings == COARSE.convert_ids_to_tokens(shared.right_ids.tolist())
    assert set(strings) == set(world.get_vocab()) & set(COARSE.get_vocab())
    assert (np.diff(shared.left_ids) > 0).all()
    assert shared.prefix is None
    assert len(strings) + shared.left_out_base == len(world)
    assert len(strings) + shared.left_out_sft == len(COARSE)
    assert shared.examples[0] == "<|endoftext|>"
    assert not set(shared.examples) & set(strings)


def test_vocabularies_with_nothing_in_common_are_refused() -> None:
    with pytest.raises(ModelError, match=r"the two tokenizers share no token; got \['!', .*; valid: w0, w1"):
        shared_vocabulary(word_tokenizer(9), FINE, 9, 258)


def test_layers_are_matched_by_the_share_of_blocks_behind_them() -> None:
    assert relative_layers(3, 3) == [0, 1, 2]
    assert relative_layers(2, 4) == [1, 3]
    assert relative_layers(4, 2) == [0, 0, 1, 1]
    assert relative_layers(3, 1) == [0, 0, 0]


@given(st.integers(1, 100), st.integers(1, 100))
def test_matched_layers_ascend_to_the_last_and_are_the_nearest(left: int, right: int) -> None:
    found = relative_layers(left, right)
    assert found == sorted(found)
    assert found[-1] == right - 1
    shares = [(j + 1) / right for j in range(right)]
    for i, j in enumerate(found):
        nearest = min(abs(share - (i + 1) / left) for share in shares)
        assert abs(shares[j] - (i + 1) / left) == pytest.approx(nearest)
