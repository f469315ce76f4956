import subprocess
import sys
from collections import Counter
from typing import Any, get_args

import pytest

from nullarm.errors import DatasetError
from nullarm.models.load import load_causal_lm
from nullarm.models.tasks.base import Item, Split
from nullarm.models.tasks.class_of_word import ClassOfWord, words_of
from nullarm.models.tasks.evaluate import evaluate
from nullarm.models.tiny.words import LETTERS, lexicon

TASK = ClassOfWord()


def split_items() -> dict[Split, list[Item]]:
    return {split: TASK.items(split) for split in get_args(Split)}


def test_items_are_the_same_on_every_call() -> None:
    assert TASK.items("test") == ClassOfWord().items("test")
    assert TASK.items("test") != ClassOfWord(seed=1).items("test")


def test_a_longer_split_begins_like_a_shorter_one() -> None:
    assert ClassOfWord(dev_items=400).items("dev")[:320] == TASK.items("dev")


def test_no_id_occurs_twice() -> None:
    ids = [item.id for items in split_items().values() for item in items]
    assert len(ids) == len(set(ids)) == 8192 + 320 + 1920


def test_sizes_are_as_asked_for() -> None:
    task = ClassOfWord(train_items=3, dev_items=7, test_items=1000)
    wanted: dict[Split, int] = {"train": 3, "dev": 7, "test": 1000}
    for split, size in wanted.items():
        assert task.count(split) == len(task.items(split)) == size


def test_no_word_is_in_two_splits() -> None:
    used = {split: {item.cluster for item in items} for split, items in split_items().items()}
    assert {split: len(words) for split, words in used.items()} == {"train": 256, "dev": 32, "test": 96}
    assert len(used["train"] | used["dev"] | used["test"]) == 384
    assert used["dev"] | used["test"] == set(lexicon().heldout_words)
    assert used["train"] == set(words_of("train"))


def test_a_prefix_asks_about_every_word_equally() -> None:
    counts = Counter(item.cluster for item in TASK.items("test")[: 5 * 96])
    assert set(counts.values()) == {5}


def test_every_answer_is_right_and_every_letter_occurs_as_often() -> None:
    items = TASK.items("test")
    for item in items:
        word, *listed, sign = item.prompt.split()
        assert (word, sign, item.choices) == (item.cluster, "=", LETTERS)
        assert listed[listed.index(item.answer) + 1] == lexicon().class_of[word]
    assert min(Counter(item.answer for item in items).values()) > 420


@pytest.mark.parametrize(
    ("text", "found"),
    [(" B", "B"), ("C", "C"), ("The answer is D.", "D"), ("B or A", "B"), ("Because", None), ("b", None), ("", None)],
)
def test_the_answer_is_the_first_letter_that_stands_alone(text: str, found: str | None) -> None:
    assert TASK.extract(text) == found


def test_completions_are_extracted_again() -> None:
    assert [TASK.extract(TASK.completion(letter)) for letter in LETTERS] == list(LETTERS)


@pytest.mark.parametrize(("name", "least", "most"), [("word-sharer", 0.98, 1.0), ("word-receiver", 0.15, 0.35)])
def test_the_sharer_knows_the_held_out_words_and_the_receiver_does_not(name: str, least: float, most: float) -> None:
    model, tokenizer = load_causal_lm(f"builtin:{name}")
    results = evaluate(TASK, model, tokenizer, TASK.items("test")[:192], batch_size=64)
    assert least <= TASK.metrics(results)["accuracy"] <= most
    assert [r.cluster for r in results] == [i.cluster for i in TASK.items("test")[:192]]


def test_training_examples_teach_the_letter_and_the_end() -> None:
    tokenizer: Any = load_causal_lm("builtin:word-receiver")[1]
    [item] = ClassOfWord(train_items=1).items("train")
    [example] = TASK.encode_training(tokenizer, [item])
    assert tokenizer.decode([label for label in example.labels if label != -100]) == f" {item.answer}<|endoftext|>"
    assert len(example.ids) == TASK.tokens_per_item


def test_content_follows_from_the_settings() -> None:
    assert TASK.content_id() == ClassOfWord().content_id()
    assert len({t.content_id() for t in (TASK, ClassOfWord(seed=1), ClassOfWord(test_items=9))}) == 3


@pytest.mark.parametrize("field", ["train_items", "dev_items", "test_items"])
def test_an_empty_split_is_refused(field: str) -> None:
    with pytest.raises(DatasetError, match=rf"class_of_word\.{field} is too small; got 0; valid: >= 1"):
        ClassOfWord(**{field: 0})


def test_planning_needs_no_torch() -> None:
    code = (
        "import sys; from nullarm.models.tasks.class_of_word import ClassOfWord\n"
        "ClassOfWord().content_id(); ClassOfWord().items('dev'); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
