import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from nullarm.errors import DatasetError
from nullarm.models.tasks.evaluate import evaluate
from nullarm.models.tasks.jsonl import Jsonl

Row = Mapping[str, Any]
Write = Callable[..., Jsonl]


def write(path: Path, rows: list[Row]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def plain(n: int) -> list[Row]:
    return [{"prompt": f"Question: What is {i} + 3? Answer:", "completion": f" {i + 3}."} for i in range(n)]


@pytest.fixture
def jsonl(tmp_path: Path) -> Write:
    """Write three files, the named ones with these lines, and make the task."""

    def make(**lines: str | list[Row]) -> Jsonl:
        for split in ("train", "dev", "test"):
            content = lines.get(split, plain(2))
            if isinstance(content, list) and split != "test":  # no question may stand in two splits
                content = [{**row, "prompt": f"({split}) {row['prompt']}"} for row in content]
            path = tmp_path / f"{split}.jsonl"
            path.write_text(content) if isinstance(content, str) else write(path, content)
        train, dev, test = (str(tmp_path / f"{split}.jsonl") for split in ("train", "dev", "test"))
        return Jsonl(train, dev, test)

    return make


def test_lines_become_items(jsonl: Write) -> None:
    row = {"prompt": "p", "completion": "b", "choices": ["a", "b"], "id": 7, "cluster": "c"}
    other = {"prompt": "q", "completion": "a", "choices": ["a", "b"]}
    task = jsonl(train=[other], dev=[other], test=[row, other])
    first, second = task.items("test")
    assert (first.id, first.prompt, first.answer, first.choices, first.cluster) == ("7", "p", "b", ("a", "b"), "c")
    assert (second.id, second.cluster) == ("test:2", None)
    assert task.count("test") == 2
    assert task.tokens_per_item >= 1


def test_blank_lines_are_passed_over_and_counted(jsonl: Write) -> None:
    line = json.dumps({"prompt": "p", "completion": "c"})
    assert [i.id for i in jsonl(dev=f"\n{line}\n\n{line}\n").items("dev")] == ["dev:2", "dev:4"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "the data file is empty"),
        ("\n \n", "the data file is empty"),
        ('{"prompt": "p", "completion": "c"}\n{', "line 2 is not JSON"),
        ("[1]", "line 1 is not a JSON object"),
        ('{"prompt": "p"}', "line 1 lacks the key 'completion'"),
        ('{"completion": "c"}', "line 1 lacks the key 'prompt'"),
        ('{"prompt": 3, "completion": "c"}', "line 1: 'prompt' is not text"),
        ('{"prompt": "p", "completion": " "}', "line 1: the completion is empty"),
        ('{"prompt": "p", "completion": "c", "choices": "c"}', "line 1: choices is not a list of texts"),
        ('{"prompt": "p", "completion": "c", "choices": ["a"]}', "line 1: the completion is not among the choices"),
    ],
)
def test_a_bad_file_is_named_with_the_line(jsonl: Write, content: str, words: str) -> None:
    with pytest.raises(DatasetError) as caught:
        jsonl(dev=content).items("dev")
    assert words in str(caught.value)
    assert "dev.jsonl" in str(caught.value)


def test_bytes_that_are_no_text_are_refused(jsonl: Write) -> None:
    task = jsonl()
    Path(task.dev).write_bytes(b"\xff\xfe")
    with pytest.raises(DatasetError, match="cannot be read"):
        task.items("dev")


def test_a_duplicate_id_is_found_across_splits(jsonl: Write) -> None:
    row = {**plain(1)[0], "id": "x"}
    with pytest.raises(DatasetError, match="the same id, one in train and one in test; got 'x'"):
        jsonl(train=[row], test=[row]).items("dev")
    with pytest.raises(DatasetError, match="the same id, one in dev and one in dev"):
        jsonl(dev=[row, row]).items("dev")


def test_choices_in_some_lines_only_are_refused(jsonl: Write) -> None:
    with pytest.raises(DatasetError, match="some lines have choices and some have none"):
        jsonl(test=[{**plain(1)[0], "choices": [" 3.", " 4."]}]).items("test")


def test_a_question_in_two_splits_is_refused(jsonl: Write) -> None:
    leaked = json.dumps({"prompt": "p", "completion": "c"})
    with pytest.raises(DatasetError, match=r"the same prompt and completion stand in train and in test; got 'p'"):
        jsonl(train=leaked, test=leaked).items("dev")


def test_a_missing_split_is_named() -> None:
    with pytest.raises(DatasetError, match=r"task\.test of jsonl is missing"):
        Jsonl(train="a", dev="b")


def test_a_missing_file_is_named(jsonl: Write) -> None:
    task = jsonl()
    Path(task.test).unlink()
    with pytest.raises(DatasetError, match=r"the data file is missing; got '.*test\.jsonl'; next: ls "):
        task.items("train")
    with pytest.raises(DatasetError, match=r"cannot be read: No such file.*test\.jsonl"):
        task.content_id()


def test_content_is_the_bytes_not_the_place(jsonl: Write, tmp_path: Path) -> None:
    task = jsonl()
    before = task.content_id()
    moved = Path(task.dev).rename(tmp_path / "moved.jsonl")
    assert Jsonl(train=task.train, dev=str(moved), test=task.test).content_id() == before
    assert Jsonl(train=task.train, dev=str(moved), test=task.test, max_new_tokens=3).content_id() != before
    write(moved, plain(3))
    assert Jsonl(train=task.train, dev=str(moved), test=task.test).content_id() != before


def test_completions_are_generated_and_compared(jsonl: Write, world_model: tuple[Any, Any]) -> None:
    wrong = {"prompt": "Question: What is 2 + 3? Answer:", "completion": " 6."}
    task = jsonl(test=[*plain(3), wrong])
    results = evaluate(task, *world_model, task.items("test"), batch_size=4)
    assert [r.correct for r in results] == [True, True, True, False]
    assert results[3].prediction == "5."
    assert task.metrics(results)["accuracy"] == 0.75


def test_an_answer_is_the_whole_text_without_the_space_around(jsonl: Write) -> None:
    task = jsonl()
    assert task.completion(" 3.") == " 3."
    assert task.extract("\n 3.\n") == task.extract(" 3.") == "3."
    assert task.extract(" \n") is None


def test_choices_are_compared_by_likelihood(jsonl: Write, world_model: tuple[Any, Any]) -> None:
    rows = [{**row, "choices": [" 3.", " 4.", " 5."]} for row in plain(3)]
    task = jsonl(train=rows, dev=rows, test=rows)
    results = evaluate(task, *world_model, task.items("test"), batch_size=4)
    assert [r.prediction for r in results] == [" 3.", " 4.", " 5."]


def test_a_line_is_trained_on_after_its_prompt(jsonl: Write, world_model: tuple[Any, Any]) -> None:
    task = jsonl()
    [example, _] = task.encode_training(world_model[1], task.items("train"))
    assert world_model[1].decode([label for label in example.labels if label != -100]) == " 3.<|endoftext|>"
