import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from nullarm.errors import DatasetError
from nullarm.models.tasks.base import Item
from nullarm.models.tasks.conversations import Conversations
from nullarm.models.tasks.evaluate import evaluate

Row = Mapping[str, Any]


def row(*turns: tuple[str, str]) -> Row:
    return {"conversations": [{"from": role, "value": text} for role, text in turns]}


def asked(n: int) -> Row:
    return row(("human", f"What is {n} + 3?"), ("gpt", f"{n + 3}."))


def write(path: Path, rows: list[Row]) -> Conversations:
    (path / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), "utf-8")
    return Conversations(path=str(path), dev_items=2, test_items=3, max_new_tokens=4)


def every_item(task: Conversations) -> dict[str, Item]:
    return {item.id: item for split in ("train", "dev", "test") for item in task.items(split)}


def test_the_splits_divide_the_rows(tmp_path: Path) -> None:
    task = write(tmp_path, [asked(n) for n in range(12)])
    assert [len(task.items(split)) for split in ("train", "dev", "test")] == [7, 2, 3]
    assert [task.count(split) for split in ("train", "dev", "test")] == [7, 2, 3]
    assert set(every_item(task)) == {f"conversations/train-{n}" for n in range(12)}
    assert task.items("test") == task.items("test")
    dev = {tuple(Conversations(path=task.path, dev_items=2, test_items=3, seed=s).items("dev")) for s in range(8)}
    assert len(dev) > 1


def test_only_the_first_rows_are_used(tmp_path: Path) -> None:
    task = write(tmp_path, [asked(n) for n in range(12)])
    first = Conversations(path=task.path, first_rows=6, dev_items=1, test_items=1)
    assert set(every_item(first)) == {f"conversations/train-{n}" for n in range(6)}


def test_the_last_answer_follows_the_turns_before_it(tmp_path: Path) -> None:
    rows = [asked(n) for n in range(8)]
    rows[1] = row(("system", "Be kind."), ("human", "Hello"), ("gpt", "Hi"), ("human", "Bye"), ("gpt", "See you"))
    items = every_item(write(tmp_path, rows))
    assert items["conversations/train-0"].prompt == "What is 0 + 3?"
    assert items["conversations/train-0"].answer == "3."
    several = items["conversations/train-1"]
    assert several.prompt == "System: Be kind.\n\nUser: Hello\n\nAssistant: Hi\n\nUser: Bye"
    assert several.answer == "See you"


def test_rows_without_a_last_answer_are_left_out(tmp_path: Path) -> None:
    odd = [
        row(("human", "Hello")),
        row(("gpt", "Hi")),
        row(("human", "Hello"), ("gpt", " ")),
        row(("human", "Hello"), ("gpt", "Hi"), ("gpt", "Hi")),
        row(),
    ]
    task = write(tmp_path, [*odd, *(asked(n) for n in range(8))])
    assert set(every_item(task)) == {f"conversations/train-{n}" for n in range(5, 13)}


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"text": "x"}, "conversations is not a list of turns"),
        ({"conversations": ["x"]}, "conversations is not a list of turns; got ['x']"),
        ({"conversations": [{"from": "human"}]}, "lacks the key 'value'"),
        ({"conversations": [{"from": "human", "value": 3}]}, "'value' is not text; got 3"),
        (row(("tool", "x")), "a turn is from nobody known; got 'tool'; valid: system, human, gpt"),
    ],
)
def test_a_bad_row_is_named_with_file_and_line(tmp_path: Path, bad: Row, words: str) -> None:
    task = write(tmp_path, [asked(0), bad])
    with pytest.raises(DatasetError) as caught:
        task.items("train")
    assert words in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path / 'train.jsonl'}, line 2")


def test_nothing_left_to_train_on_is_refused(tmp_path: Path) -> None:
    task = write(tmp_path, [asked(n) for n in range(5)])
    with pytest.raises(DatasetError, match="leave no conversation to train on; got 5; valid: < 5"):
        task.items("train")
    with pytest.raises(DatasetError, match=r"conversations\.dev_items is too small; got 0; valid: >= 1"):
        Conversations(dev_items=0)


def test_the_hub_is_asked_for_the_first_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    class Hub:
        @staticmethod
        def load_dataset(*names: str, **options: str) -> list[Row]:
            calls.append((names, options))
            return [asked(n) for n in range(4)]

    monkeypatch.setitem(sys.modules, "datasets", Hub)
    assert len(Conversations(first_rows=4, dev_items=1, test_items=1).items("train")) == 2
    assert calls == [(("teknium/OpenHermes-2.5", "default"), {"split": "train[:4]", "revision": "main"})]


def test_a_hub_that_cannot_be_reached_asks_for_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DatasetError, match=r"valid: path: a directory with train\.jsonl"):
        Conversations().items("train")


def test_content_is_the_rows_and_the_settings(tmp_path: Path) -> None:
    task = write(tmp_path, [asked(n) for n in range(8)])
    before = task.content_id()
    assert Conversations(path=task.path, first_rows=5).content_id() != before
    assert write(tmp_path, [asked(n) for n in range(9)]).content_id() != before


def test_the_last_answer_is_trained_on(tmp_path: Path, world_model: tuple[Any, Any]) -> None:
    task = write(tmp_path, [asked(n) for n in range(8)])
    [item] = [item for item in every_item(task).values() if item.answer == "5."]
    [example] = task.encode_training(world_model[1], [item])
    trained = world_model[1].decode([label for label in example.labels if label != -100])
    assert trained.strip() == "5.<|endoftext|>"


def test_answers_are_generated_and_compared_whole(tmp_path: Path, world_model: tuple[Any, Any]) -> None:
    task = write(tmp_path, [asked(n) for n in range(8)])
    results = evaluate(task, *world_model, task.items("test"), batch_size=4)
    assert [r.target for r in results] == [item.answer for item in task.items("test")]
    assert all(r.correct == (r.prediction == r.target) and r.loss > 0 for r in results)
