"""Which tokens of the sharer the receiver's tokens take, with real fast tokenisers."""

from __future__ import annotations

import random
from bisect import bisect_left
from itertools import accumulate, permutations
from typing import Any

import pytest
from communication_single import rendered
from communication_tokenizers import MERGES, byte_bpe, slow, token_bytes, unigram, word_pieces, words

from nullarm.errors import ModelError
from nullarm.protocols.kv_communication.communication.alignment import by_offsets, one_id_each

PIECES = ["the ", "cat", " sat", "  ", "\n\n", "émile", "😀", " 😀", "a", " catalogue", "é", "12", " ", "\t", "日本"]
MERGE_LISTS = [[], MERGES, MERGES[:8], ["Ġ ð", *MERGES], ["a t", "Ġ s", "Ġs at", "m i", "Ġ Ġ"]]
"""With `Ġð` there are tokens that end within a character."""


def aligned(text: str, receiver: Any, sharer: Any) -> list[tuple[str, str]]:
    """Each token of the receiver with the one it takes, in the vocabularies' own writing; "" for none."""
    mine, theirs = rendered(receiver, text, chat_template=False), rendered(sharer, text, chat_template=False)
    taken = by_offsets(mine, theirs)
    read = sharer.convert_ids_to_tokens(theirs.ids)
    own = receiver.convert_ids_to_tokens(mine.ids)
    return [(token, "" if i < 0 else read[i]) for token, i in zip(own, taken, strict=True)]


@pytest.mark.parametrize("trims", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("pair", list(permutations(MERGE_LISTS, 2)))
def test_between_byte_bpes_it_is_the_token_with_the_last_byte_of_the_character(
    pair: tuple[list[str], list[str]], trims: tuple[bool, bool]
) -> None:
    receiver, sharer = (byte_bpe(merges, trim=trim) for merges, trim in zip(pair, trims, strict=True))
    rng = random.Random(0)
    for _ in range(100):
        text = "the" + "".join(rng.choice(PIECES) for _ in range(rng.randrange(1, 12)))
        mine, theirs = rendered(receiver, text, chat_template=False), rendered(sharer, text, chat_template=False)
        if mine.ids == theirs.ids:
            continue
        characters = list(accumulate(len(c.encode()) for c in text))
        ends = list(accumulate(map(len, token_bytes(receiver, mine.ids))))
        reached = list(accumulate(map(len, token_bytes(sharer, theirs.ids))))
        truth = [bisect_left(reached, characters[bisect_left(characters, end)]) for end in ends]
        assert by_offsets(mine, theirs) == truth, text


def test_the_bytes_of_an_emoji_all_take_the_token_that_has_read_all_of_it() -> None:
    bytes_only, merged = byte_bpe([]), byte_bpe()
    pairs = aligned("a 😀!", bytes_only, merged)
    assert [taken for _, taken in pairs] == ["a", *["ĠðŁĺĢ"] * 5, "!"]
    back = aligned("a 😀!", merged, bytes_only)
    assert back == [("a", "a"), ("ĠðŁĺĢ", "Ģ"), ("!", "!")]


def test_trimmed_offsets_of_leading_spaces_and_of_bare_spaces_are_put_back() -> None:
    plain, trimmed = byte_bpe(), byte_bpe(trim=True)
    read = rendered(trimmed, "the  cat \n sat ", chat_template=False)
    assert read.spans == rendered(plain, "the  cat \n sat ", chat_template=False).spans
    assert (9, 9) in trimmed("the  cat \n sat ", return_offsets_mapping=True)["offset_mapping"]


def test_words_without_spaces_take_the_piece_that_ends_them() -> None:
    assert aligned("the cat", words(), byte_bpe(MERGES[:2])) == [("the", "he"), ("cat", "at")]


def test_pieces_of_a_word_take_the_word_and_a_space_what_is_behind_it() -> None:
    pairs = aligned("the cat", byte_bpe([]), words())
    assert [taken for _, taken in pairs] == ["the"] * 3 + ["cat"] * 4


def test_white_space_that_the_sharer_has_no_token_for_is_not_fused() -> None:
    assert aligned("the \n", byte_bpe([]), words())[-2:] == [("Ġ", ""), ("Ċ", "")]


def test_word_pieces_take_metaspace_tokens_and_the_other_way_round() -> None:
    text = "the cat émile"
    mine = rendered(word_pieces(), text, chat_template=False)
    assert mine.spans is not None
    theirs = rendered(unigram(), text, chat_template=False)
    assert theirs.spans is not None
    for source, reader, read in ((by_offsets(mine, theirs), mine, theirs), (by_offsets(theirs, mine), theirs, mine)):
        assert reader.spans is not None
        assert read.spans is not None
        for (start, end), taken in zip(reader.spans, source, strict=True):
            first, last = read.spans[taken]
            assert start < end
            assert first < end <= last
            assert all(not first <= end - 1 < last for first, last in read.spans[taken + 1 :])


def test_a_token_that_reaches_into_the_next_word_covers_the_end_of_this_one() -> None:
    assert aligned("the cat", words(), unigram(split=False))[0] == ("the", "▁the▁")


def test_the_same_tokens_of_the_same_text_take_their_own_bos_and_all() -> None:
    mine = rendered(byte_bpe(adds="bos eos"), "the cat 😀", chat_template=False)
    assert by_offsets(mine, rendered(byte_bpe(adds="bos eos"), "the cat 😀", chat_template=False)) == list(
        range(len(mine.ids))
    )


def test_a_token_without_characters_is_not_fused_across_tokenisers() -> None:
    mine = rendered(byte_bpe(adds="bos"), "the cat", chat_template=False)
    theirs = rendered(byte_bpe(MERGES[:2]), "the cat", chat_template=False)
    assert by_offsets(mine, theirs) == [-1, 1, 4]


def test_a_slow_tokeniser_is_refused_beside_another_and_not_beside_its_like() -> None:
    mine, theirs = (
        rendered(byte_bpe(), "the cat", chat_template=False),
        rendered(slow(), "the cat", chat_template=False),
    )
    with pytest.raises(ModelError, match=r"aligned by character offsets.*fast tokenizers, or `alignment: one_id`"):
        by_offsets(mine, theirs)
    assert by_offsets(theirs, rendered(slow(), "the cat", chat_template=False)) == list(range(7))


def test_one_id_keeps_the_longest_part_of_each_token_and_the_first_of_equals() -> None:
    whole, pieces = words(), byte_bpe(MERGES[:2])
    mine = rendered(whole, "the cat sat", chat_template=False)
    ids, source = one_id_each(mine, whole, pieces)
    assert [pieces.tokenize(word) for word in ("the", "cat", "sat")] == [["t", "he"], ["c", "at"], ["s", "at"]]
    assert pieces.convert_ids_to_tokens(ids) == ["he", "at", "at"]
    assert source == [0, 1, 2]
    mine = rendered(byte_bpe(MERGES[:4]), " at cat", chat_template=False)
    ids, _ = one_id_each(mine, byte_bpe(MERGES[:4]), byte_bpe([]))
    assert byte_bpe([]).convert_ids_to_tokens(ids) == ["Ġ", "a", "Ġ", "c"]


def test_one_id_of_a_text_that_is_nothing_to_the_sharer_is_unknown_and_not_fused() -> None:
    bytes_only, whole = byte_bpe([]), words()
    ids, source = one_id_each(rendered(bytes_only, "a a", chat_template=False), bytes_only, whole)
    assert whole.convert_ids_to_tokens(ids) == ["a", "<unk>", "a"]
    assert source == [0, -1, 2]


def test_one_id_needs_a_fast_sharer() -> None:
    with pytest.raises(ModelError, match=r"only fast tokenizers tell.*valid: a sharer with a fast tokenizer"):
        one_id_each(rendered(byte_bpe(), "a", chat_template=False), byte_bpe(), slow())
