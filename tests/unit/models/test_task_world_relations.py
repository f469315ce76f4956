from collections import Counter
from typing import Any, get_args

import pytest

from nullarm.errors import DatasetError
from nullarm.models.tasks.base import Item, Split
from nullarm.models.tasks.evaluate import evaluate
from nullarm.models.tasks.world_relations import WorldRelations

TASK = WorldRelations()


def split_items() -> dict[Split, list[Item]]:
    return {split: TASK.items(split) for split in get_args(Split)}


def kind(item: Item) -> str:
    return item.id.partition("/")[0]


def test_items_are_the_same_on_every_call() -> None:
    assert TASK.items("test") == WorldRelations().items("test")
    assert TASK.items("test") != WorldRelations(seed=1).items("test")


def test_no_id_occurs_twice() -> None:
    ids = [item.id for items in split_items().values() for item in items]
    assert len(ids) == len(set(ids))


def test_sizes_are_as_asked_for_and_counted_right() -> None:
    task = WorldRelations(dev_items=7, test_items=1000)
    for split in get_args(Split):
        assert task.count(split) == len(task.items(split))
    assert (task.count("dev"), task.count("test")) == (7, 1000)
    assert len({item.id for item in task.items("test")}) == 1000


def test_kinds_are_balanced() -> None:
    for split, items in split_items().items():
        counts = Counter(map(kind, items))
        assert set(counts) == {"tool", "friend", "subtract"}
        assert max(counts.values()) - min(counts.values()) <= (10 if split == "train" else 0)


def test_every_relation_is_taught_and_taught_alike_everywhere() -> None:
    splits = split_items()
    taught = {item.prompt: item.answer for item in splits["train"] if kind(item) != "subtract"}
    assert len(taught) == 96
    for split in ("dev", "test"):
        asked = [item for item in splits[split] if kind(item) != "subtract"]
        assert all(taught[item.prompt] == item.answer for item in asked)


def test_differences_of_a_split_are_in_no_other() -> None:
    prompts = [{i.prompt for i in items if kind(i) == "subtract"} for items in split_items().values()]
    assert sum(map(len, prompts)) == len(set.union(*prompts)) == 210


def test_dev_and_test_ask_about_different_people() -> None:
    dev, test = ({i.cluster for i in TASK.items(split)} for split in ("dev", "test"))
    assert not dev & test


def test_a_cluster_holds_what_shares_a_person_or_a_difference() -> None:
    for item in TASK.items("test"):
        assert item.cluster is not None
        prefix, _, subject = item.cluster.partition("/")
        assert item.id.split("/")[1] == subject
        assert prefix == ("difference" if kind(item) == "subtract" else "person")


def test_questions_are_answerable() -> None:
    for item in TASK.items("test"):
        assert len(set(item.choices)) == 4
        assert item.answer in item.choices
        if kind(item) == "subtract":
            a, b = item.id.split("/")[1].split("-")
            assert item.answer == str(int(a) - int(b))


def test_the_base_does_not_know_the_answers(world_model: tuple[Any, Any]) -> None:
    results = evaluate(TASK, *world_model, TASK.items("test"), batch_size=64)
    metrics = TASK.metrics(results)
    assert 0.1 < metrics["accuracy"] < 0.4
    assert metrics["loss"] > 3


def test_training_examples_teach_the_answer(world_model: tuple[Any, Any]) -> None:
    item = TASK.items("train")[0]
    [example] = TASK.encode_training(world_model[1], [item])
    trained = [label for label in example.labels if label != -100]
    assert world_model[1].decode(trained) == f" {item.answer}.<|endoftext|>"
    assert 0.5 < TASK.tokens_per_item / len(example.ids) < 2


def test_every_answer_is_read_out_of_its_completion() -> None:
    for item in (item for items in split_items().values() for item in items):
        assert TASK.extract(TASK.completion(item.answer)) == TASK.extract(item.answer) == item.answer


@pytest.mark.parametrize("text", ["", ".", "Anna or Bela.", "7. What is", "hammer.."])
def test_more_than_one_word_is_no_answer(text: str) -> None:
    assert TASK.extract(text) is None


def test_content_follows_from_the_settings() -> None:
    assert TASK.content_id() == WorldRelations().content_id()
    assert len({t.content_id() for t in (TASK, WorldRelations(seed=1), WorldRelations(test_items=9))}) == 3


def test_a_split_without_every_kind_is_refused() -> None:
    with pytest.raises(DatasetError, match=r"world_relations\.dev_items is too small; got 2; valid: >= 3"):
        WorldRelations(dev_items=2)
