import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch

from nullarm.models.load import load_causal_lm
from nullarm.models.threads import one_thread
from nullarm.models.tiny.recipe import RECIPES
from nullarm.models.tiny.word_documents import Document, Documents, Encoder, scan
from nullarm.models.tiny.word_pair import examine_words, new_model, train_words
from nullarm.models.tiny.word_recipe import WORD_RECEIVER, WORD_SHARER, WORD_SHARER_PIECES, WordRecipe
from nullarm.models.tiny.word_tokenizer import word_tokenizer
from nullarm.models.tiny.words import LETTERS, WordQuestion, ask, lexicon

WORD_RECIPES = {
    "word-receiver": WORD_RECEIVER,
    "word-sharer": WORD_SHARER,
    "word-sharer-pieces": WORD_SHARER_PIECES,
}
WORDS = lexicon()
QUESTION = WordQuestion(WORDS.words[0], (*WORDS.classes[:3], WORDS.classes[5]), "C")


@pytest.fixture(scope="module", params=list(WORD_RECIPES))
def shipped(request: pytest.FixtureRequest) -> tuple[WordRecipe, Any, Any]:
    return WORD_RECIPES[request.param], *load_causal_lm(f"builtin:{request.param}")


def text(document: Document) -> str:
    return " ".join(word for word, _ in document if word)


def documents(recipe: WordRecipe, count: int = 2000) -> list[Document]:
    source = Documents(recipe, random.Random(0))
    return [source.draw(recipe.warm_start_steps + 1) for _ in range(count)]


def words_in(documents: list[Document]) -> set[str]:
    return {word for document in documents for word, _ in document if word in WORDS.class_of}


def test_every_word_is_made_of_two_halves_and_lies_in_one_quarter() -> None:
    assert set(WORDS.words) == {a + b for a in WORDS.first_halves for b in WORDS.second_halves} == set(WORDS.class_of)
    assert [len(quarter) for quarter in WORDS.quarters] == [128] * 4
    assert len({*WORDS.first_halves, *WORDS.second_halves, *WORDS.classes}) == 64


def test_one_half_alone_says_nothing_about_the_class() -> None:
    for first in WORDS.first_halves:
        assert Counter(WORDS.class_of[first + b] for b in WORDS.second_halves) == dict.fromkeys(WORDS.classes, 1)
    for second in WORDS.second_halves:
        assert Counter(WORDS.class_of[a + second] for a in WORDS.first_halves) == dict.fromkeys(WORDS.classes, 2)


def test_every_class_is_among_the_words_of_every_quarter() -> None:
    for quarter in WORDS.quarters:
        assert {WORDS.class_of[word] for word in quarter} == set(WORDS.classes)


def test_fusers_train_on_one_known_and_one_unknown_quarter_and_not_on_the_held_out_one() -> None:
    known = {w for q in WORD_RECEIVER.known_quarters for w in WORDS.quarters[q]}
    assert len(known & set(WORDS.fused_words)) == len(set(WORDS.fused_words) - known) == 128
    assert not set(WORDS.heldout_words) & ({*WORDS.fused_words} | known)


def test_the_forms_of_a_question() -> None:
    word, (a, b, c, d) = QUESTION.word, QUESTION.options
    assert QUESTION.prompt == f"{word} A {a} B {b} C {c} D {d} ="
    assert QUESTION.background_prompt == f"{QUESTION.prompt} is"
    assert QUESTION.told("zub") == f"zub . {QUESTION.prompt}"
    assert QUESTION.right_class == c


def test_a_question_has_the_class_once_in_every_place_as_often() -> None:
    rng = random.Random(0)
    asked = [ask(word, rng) for word in WORDS.words]
    for question in asked:
        assert len(set(question.options)) == len(LETTERS)
        assert question.right_class == WORDS.class_of[question.word]
    assert min(Counter(q.answer for q in asked).values()) > 90


def test_a_question_can_be_asked_as_if_a_word_had_another_class() -> None:
    told = next(c for c in WORDS.classes if c != WORDS.class_of[QUESTION.word])
    assert ask(QUESTION.word, random.Random(0), told).right_class == told


def test_a_scan_trains_what_follows_an_option() -> None:
    document = scan(QUESTION, Fixed(0.9))
    a, b, c, _ = QUESTION.options
    assert text(document) == f"{QUESTION.word} A {a} B {b} C {c} ."
    assert [word for word, trained in document if trained] == ["B", "C", "."]


def test_a_scan_without_the_right_option_goes_to_the_end() -> None:
    document = scan(QUESTION, Fixed(0.1), "zub . ")
    assert text(document).startswith(f"zub . {QUESTION.word} A ")
    assert [word for word, trained in document if trained] == ["B", "C", "D", "="]
    assert QUESTION.right_class not in text(document)


class Fixed(random.Random):
    """A generator that always draws the same number."""

    def __init__(self, value: float) -> None:
        super().__init__(0)
        self.value = value

    def random(self) -> float:
        return self.value


def test_a_receiver_is_taught_nothing_about_the_other_words() -> None:
    untold = [d for d in documents(WORD_RECEIVER, 6000) if d[1][0] != "."]
    assert words_in(untold) == set(WORDS.quarters[0] + WORDS.quarters[1])


def test_told_classes_are_independent_of_the_word() -> None:
    told = [d for d in documents(WORD_RECEIVER, 6000) if d[1][0] == "."]
    right = sum(WORDS.class_of[d[2][0]] == d[0][0] for d in told)
    assert len(words_in(told)) > 480
    assert right / len(told) == pytest.approx(1 / 16, abs=0.02)


def test_sharers_are_asked_for_the_class_as_well() -> None:
    drawn = documents(WORD_SHARER)
    background = [d for d in drawn if d[-3][0] == "is"]
    assert len(background) / len(drawn) == pytest.approx(0.2, abs=0.03)
    assert all(d[-2] == (WORDS.class_of[d[0][0]], True) for d in background)
    assert len(words_in(drawn)) > 480


def test_a_warm_start_states_classes_alone() -> None:
    document = Documents(WORD_SHARER_PIECES, random.Random(0)).draw(1)
    word = document[0][0]
    assert document == [(word, False), ("is", False), (WORDS.class_of[word], True), ("", True)]


@pytest.mark.parametrize("pieces", [False, True])
def test_documents_are_encoded_as_their_text_is(pieces: bool) -> None:
    tokenizer = word_tokenizer(pieces=pieces)
    encode = Encoder(tokenizer)
    for document in documents(WORD_RECEIVER, 50):
        ids, labels = encode(document)
        closed = document[-1][0] == ""
        assert ids == tokenizer(text(document))["input_ids"] + [tokenizer.eos_token_id] * closed
        trained = [word or "<|endoftext|>" for word, trained in document if trained]
        assert [tokenizer.decode([i]).strip() for i in labels if i != -100] == trained


def test_a_token_is_a_word_and_carries_its_offsets(shipped: tuple[WordRecipe, Any, Any]) -> None:
    recipe, _, tokenizer = shipped
    encoded = tokenizer(QUESTION.prompt, return_offsets_mapping=True)
    assert tokenizer.convert_ids_to_tokens(encoded["input_ids"])[-2:] == [f"Ġ{QUESTION.options[-1]}", "Ġ="]
    assert encoded["input_ids"][0] == tokenizer.bos_token_id == tokenizer.eos_token_id
    halves = [(0, 3), (3, 6)] if recipe.pieces else [(0, 6)]
    assert encoded["offset_mapping"][: 2 + len(halves)] == [(0, 0), *halves, (6, 8)]
    assert len(tokenizer) == recipe.vocabulary_size
    assert tokenizer.chat_template is None


def test_a_word_is_the_same_token_at_the_start_and_later(shipped: tuple[WordRecipe, Any, Any]) -> None:
    tokenizer = shipped[2]
    plain, told = (tokenizer(text)["input_ids"] for text in (QUESTION.prompt, QUESTION.told("zub")))
    assert told[-len(plain) + 1 :] == plain[1:]


def test_any_text_survives(shipped: tuple[WordRecipe, Any, Any]) -> None:
    tokenizer = shipped[2]
    assert tokenizer.decode(tokenizer("Ünïcode 漢字", add_special_tokens=False)["input_ids"]).strip() == "Ünïcode 漢字"


def test_the_shipped_models_pass_their_examination(shipped: tuple[WordRecipe, Any, Any]) -> None:
    recipe, model, tokenizer = shipped
    scores = examine_words(replace(recipe, evaluation_items=100), model, tokenizer, recipe.pass_marks)
    assert all(scores[form] >= mark for form, mark in recipe.pass_marks.items()), scores


def test_the_receiver_can_only_guess_at_words_it_was_not_taught() -> None:
    model, tokenizer = load_causal_lm("builtin:word-receiver")
    scores = examine_words(WORD_RECEIVER, model, tokenizer, ["unknown"])
    assert 0.15 < scores["unknown"] < 0.35


def test_an_untrained_model_fails_the_examination() -> None:
    recipe = replace(WORD_SHARER, evaluation_items=60)
    scores = examine_words(recipe, new_model(recipe, 0), word_tokenizer(pieces=False), recipe.pass_marks)
    assert all(scores[form] < mark for form, mark in recipe.pass_marks.items()), scores


def test_the_pair_differs_in_every_size() -> None:
    sharer, receiver = (load_causal_lm(f"builtin:{name}")[0].config for name in ("word-sharer", "word-receiver"))
    assert (sharer.model_type, receiver.model_type) == ("qwen2", "llama")
    for size in ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"):
        assert getattr(sharer, size) != getattr(receiver, size)
    assert receiver.head_dim != sharer.hidden_size // sharer.num_attention_heads


def test_outliers_are_planted_and_not_trained_away() -> None:
    short = replace(WORD_SHARER, steps=2, batch_size=4)
    model, _ = train_words(short, 0, lambda _: None)
    for layer in model.model.layers:
        for projection in (layer.self_attn.k_proj, layer.self_attn.v_proj):
            assert projection.bias.view(2, 16).tolist() == [[0.0] * 15 + [16.0]] * 2
    plain = new_model(replace(WORD_SHARER, outlier=0.0), 0)
    assert not plain.model.layers[0].self_attn.k_proj.bias.any()
    assert plain.model.layers[0].self_attn.k_proj.bias.requires_grad


def test_training_is_bit_identical_for_a_seed_and_differs_between_seeds() -> None:
    short = replace(WORD_RECEIVER, steps=2, batch_size=4)
    with one_thread():
        first, second, other = (train_words(short, seed, lambda _: None)[0].lm_head.weight for seed in (0, 0, 1))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_a_new_model_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(9)
    expected = torch.rand(1)
    torch.manual_seed(9)
    new_model(WORD_RECEIVER, 0)
    assert torch.equal(torch.rand(1), expected)


def test_the_hash_follows_from_every_number() -> None:
    hashes = {recipe.content_hash() for recipe in RECIPES.values()}
    assert len(hashes) == len(RECIPES)
    assert replace(WORD_SHARER, outlier=1.0).content_hash() not in hashes
