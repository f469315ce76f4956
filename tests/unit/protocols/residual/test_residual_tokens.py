from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from bpes import CHAT_TEMPLATE, bpe
from hypothesis import given
from hypothesis import strategies as st
from transformers import ByT5Tokenizer

from nullarm.errors import DatasetError, ModelError
from nullarm.models.load import load_causal_lm
from nullarm.protocols.residual.reading.tokens import (
    Encoded,
    batches,
    encode,
    normalize,
    padded,
    read,
    rendered,
    reread,
)
from nullarm.protocols.residual.reading.variants import Variation

PROMPTS = ("the cat sat on the mat", "a cat", "the cat, été")


def identities(*texts: str) -> list[Variation]:
    return [Variation(index, "identity", text) for index, text in enumerate(texts)]


def rows_of(lengths: Sequence[int]) -> list[Encoded]:
    return [Encoded(n // 2, f"v{n % 2}", "", (n,) * length, None, ("t",) * length) for n, length in enumerate(lengths)]


def test_a_row_has_ids_offsets_and_vocabulary_strings() -> None:
    tokenizer = load_causal_lm("builtin:world")[1]
    (row,) = encode(tokenizer, [Variation(3, "mirror_halves", "the cat")])
    assert (row.prompt, row.variant, row.text) == (3, "mirror_halves", "the cat")
    assert list(row.ids) == tokenizer("the cat")["input_ids"]
    assert row.tokens == ("t", "he", "Ġcat")
    assert row.offsets == ((0, 1), (1, 3), (3, 7))


@pytest.mark.parametrize(("adds_bos", "add_bos", "wanted"), [(0, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 1)])
def test_bos_stands_once_where_asked_or_where_the_tokenizer_puts_it(adds_bos: int, add_bos: int, wanted: int) -> None:
    tokenizer = bpe(adds_bos=bool(adds_bos), adds_eos=True)
    plain, has_it = encode(tokenizer, identities("the cat", "<bos>the cat"), add_bos=bool(add_bos))
    assert plain.tokens.count("<bos>") == wanted
    assert plain.tokens[:1] == (("<bos>",) if wanted else ("the",))
    assert plain.offsets is not None
    assert plain.offsets[:wanted] == ((0, 0),) * wanted
    assert len(plain.offsets) == len(plain.ids) == len(plain.tokens)
    assert has_it.tokens.count("<bos>") == 1
    assert "<eos>" not in plain.tokens  # the prompt goes on


def test_bos_of_a_tokenizer_without_one_is_refused() -> None:
    with pytest.raises(ModelError, match=r"the tokenizer has no BOS token; got .*; valid: `add_bos: false`"):
        encode(bpe(bos=False), identities("a"), add_bos=True)


def test_the_chat_template_says_how_a_row_begins() -> None:
    tokenizer = bpe(adds_bos=True)
    tokenizer.chat_template = CHAT_TEMPLATE
    texts = rendered(tokenizer, identities("a cat"))
    assert texts == identities("<bos><user>a cat</user><answer>")
    (row,) = encode(tokenizer, texts, templated=True)
    assert list(row.ids) == tokenizer.apply_chat_template(
        [{"role": "user", "content": "a cat"}], add_generation_prompt=True
    )["input_ids"]  # fmt: skip
    assert encode(tokenizer, texts, add_bos=True, templated=True) == (row,)
    tokenizer.chat_template = CHAT_TEMPLATE.replace("{{ bos_token }}", "")
    (without,) = encode(tokenizer, rendered(tokenizer, identities("a cat")), templated=True)
    assert without.ids == row.ids[1:]


def test_a_chat_template_that_is_missing_or_refuses_is_an_error() -> None:
    tokenizer = bpe()
    with pytest.raises(ModelError, match=r"the tokenizer has no chat template; .* valid: `chat_template: false`"):
        rendered(tokenizer, identities("a"))
    tokenizer.chat_template = "{{ raise_exception('system message first') }}"
    with pytest.raises(ModelError, match="the chat template does not render: system message first"):
        rendered(tokenizer, identities("a"))


def test_a_text_without_tokens_is_refused_by_index() -> None:
    with pytest.raises(DatasetError, match="prompt 1, variant 'identity', has no tokens; got ''"):
        encode(bpe(adds_bos=True), identities("a", ""))


def test_a_slow_tokenizer_encodes_without_offsets() -> None:
    row, other = encode(ByT5Tokenizer(), identities("hé", "abc"))
    assert (row.ids, row.offsets, row.tokens) == ((107, 198, 172), None, ("h", "Ã", "©"))
    assert normalize([row, other])[1] == "Normalized production prompts to 3 tokens (previous max length 3 tokens)."
    with pytest.raises(ModelError, match="prompt 1 cannot be trimmed: a slow tokenizer does not tell"):
        normalize(encode(ByT5Tokenizer(), identities("ab", "abc")))


def test_normalising_cuts_ids_and_the_text_that_they_cover() -> None:
    rows = encode(bpe(), identities(*PROMPTS))
    lengths = [len(row.ids) for row in rows]
    cut, line = normalize(rows)
    shortest = min(lengths)
    assert line == f"Normalized production prompts to {shortest} tokens (previous max length {max(lengths)} tokens)."
    assert [row.ids for row in cut] == [row.ids[:shortest] for row in rows]
    assert [row.text for row in cut] == ["the cat", "a cat", "the cat"]
    assert all(len(row.tokens) == len(row.offsets or ()) == shortest for row in cut)
    assert encode(bpe(), []) == ()
    with pytest.raises(DatasetError, match="there are no prompts"):
        normalize([])


def test_a_character_cut_in_two_keeps_its_ids_but_not_its_place_in_the_text() -> None:
    tokenizer = bpe(258)  # bytes only
    cut, _ = normalize(encode(tokenizer, identities("ab", "xé")))
    assert cut[1].tokens == ("x", "Ã")
    assert cut[1].text == "x"


def test_variants_are_made_of_trimmed_prompts_and_identity_is_the_kept_ids() -> None:
    tokenizer = bpe(258, adds_bos=True)
    rows, notes = read(
        tokenizer, ["abc", "xyé😀"], normalize_length=True, variants=["identity", "mirror_halves"], seed=0
    )
    assert notes == ("Normalized production prompts to 4 tokens (previous max length 9 tokens).",)
    assert [(row.prompt, row.variant, row.text) for row in rows] == [
        (0, "identity", "abc"), (0, "mirror_halves", "bca"), (1, "identity", "xy"), (1, "mirror_halves", "yx"),
    ]  # fmt: skip
    assert rows[2].tokens == ("<bos>", "x", "y", "Ã")
    assert rows[3].tokens == ("<bos>", "y", "x")


def test_a_study_without_normalising_is_read_whole() -> None:
    rows, notes = read(bpe(), PROMPTS, variants=["base_prefixed"], seed=0)
    assert notes == ()
    assert [row.text for row in rows] == [f"[BASE] {prompt}" for prompt in PROMPTS]


def test_the_template_may_be_another_tokenizers() -> None:
    chatty = bpe()
    chatty.chat_template = CHAT_TEMPLATE
    rows, _ = read(bpe(), PROMPTS, chat_template=True, normalize_length=True, seed=0, template_of=chatty)
    assert [row.text for row in rows] == [
        f"<bos><user>{text}</user><answer>" for text in ("the cat", "a cat", "the cat")
    ]  # fmt: skip
    with pytest.raises(ModelError, match="no chat template"):
        read(bpe(), PROMPTS, chat_template=True, seed=0)


def test_the_study_seed_reaches_the_variants() -> None:
    prompt = " ".join(f"S{n}." for n in range(12))
    texts = [read(bpe(), [prompt], variants=["shuffle_sentences"], seed=s)[0][0].text for s in (0, 1, 0)]
    assert texts[0] == texts[2] != texts[1]


def test_another_tokenizer_rereads_the_texts_and_a_like_one_keeps_the_rows() -> None:
    bytes_only = bpe(258)
    rows, _ = read(bytes_only, ["ab", "xé"], normalize_length=True, seed=0)
    assert reread(rows, bytes_only, bpe(258)) == rows
    other = reread(rows, bytes_only, bpe(258, adds_bos=True))
    assert [row.tokens for row in other] == [("<bos>", "a", "b"), ("<bos>", "x")]
    assert [row.text for row in other] == [row.text for row in rows]


@given(st.lists(st.integers(1, 30), max_size=40), st.integers(1, 80), st.integers(1, 80))
def test_batches_hold_every_row_once_within_the_budget_in_one_order(
    lengths: list[int], budget: int, other: int
) -> None:
    rows = rows_of(lengths)
    found = batches(rows, budget)
    flat = [row for batch in found for row in batch]
    assert sorted(row.ids for row in flat) == sorted(row.ids for row in rows)
    assert flat == [row for batch in batches(rows, other) for row in batch]
    assert [(len(r.ids), r.prompt, r.variant) for r in flat] == sorted((len(r.ids), r.prompt, r.variant) for r in rows)
    assert all(len(batch) == 1 or len(batch) * max(len(row.ids) for row in batch) <= budget for batch in found)
    for batch, following in pairwise(found):
        assert (len(batch) + 1) * len(following[0].ids) > budget  # no batch ends early


def test_padding_is_on_the_right() -> None:
    ids, lengths = padded(rows_of([1, 3]), pad_id=9)
    assert ids.tolist() == [[0, 9, 9], [1, 1, 1]]
    assert lengths.tolist() == [1, 3]
    assert ids.dtype == lengths.dtype == torch.long
