import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from nullarm.errors import DatasetError
from nullarm.models.tasks.evaluate import evaluate
from nullarm.models.tasks.final_number import final_number
from nullarm.models.tasks.gsm8k import Gsm8k
from nullarm.models.tasks.rows import chosen

Row = Mapping[str, Any]


def write(path: Path, rows: list[Row]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("She has 3 + 4 = 7.\n#### 18", "18"),
        ("#### -5", "-5"),
        ("#### −5", "-5"),
        ("#### $1,234,567", "1234567"),
        ("#### -$1,234.50", "-1234.5"),
        ("#### $-3", "-3"),
        ("#### 18.00", "18"),
        ("#### 0.50", "0.5"),
        ("#### .5", "0.5"),
        ("#### 72\n\nQuestion: 9", "72"),
        ("#### \nThe 4 and the 6", "4"),
        ("it is 3, then 12.", "12"),
        ("so 5-3=2", "2"),
        ("7 - 3", "3"),
        ("(2)-3", "3"),
        ("it falls to -4 degrees", "-4"),
        ("1,2", "2"),
        ("in 2007,", "2007"),
        ("007", "7"),
        ("-0", "0"),
        ("10%", "10"),
        ("12 #### none", "12"),
        ("no number", None),
        ("", None),
    ],
)
def test_the_final_number(text: str, number: str | None) -> None:
    assert final_number(text) == number


def gsm8k_rows(n: int) -> list[Row]:
    return [
        {"question": f"What is {i} and {i}?", "answer": f"Add <<{i}+{i}={2 * i}>>.\n#### {2 * i}"} for i in range(n)
    ]


@pytest.fixture
def gsm8k(tmp_path: Path) -> Gsm8k:
    write(tmp_path / "train.jsonl", gsm8k_rows(30))
    write(tmp_path / "test.jsonl", gsm8k_rows(12))
    return Gsm8k(path=str(tmp_path), dev_items=10, max_new_tokens=4)


def test_dev_is_taken_out_of_the_training_split(gsm8k: Gsm8k) -> None:
    train, dev, test = (gsm8k.items(split) for split in ("train", "dev", "test"))
    assert (len(train), len(dev), len(test)) == (20, 10, 12)
    assert len({i.id for i in [*train, *dev, *test]}) == 42
    assert not {i.prompt for i in train} & {i.prompt for i in dev}
    assert [gsm8k.count(split) for split in ("train", "dev", "test")] == [20, 10, 12]


def test_the_prompt_and_completion_are_the_runbook_s(gsm8k: Gsm8k, world_model: tuple[Any, Any]) -> None:
    item = gsm8k.items("test")[3]
    assert item.prompt == "Question: What is 3 and 3?\nAnswer:"
    [example] = gsm8k.encode_training(world_model[1], [item])
    trained = world_model[1].decode([label for label in example.labels if label != -100])
    assert trained == " Add <<3+3=6>>.\n#### 6<|endoftext|>"


def test_an_answer_is_read_out_of_its_completion(gsm8k: Gsm8k) -> None:
    assert gsm8k.extract(gsm8k.completion("3 + 4 = 7\n#### 7")) == "7"
    assert gsm8k.extract("I do not know") is None


def test_published_sizes_are_known_without_the_data() -> None:
    task = Gsm8k()
    assert [task.count(split) for split in ("train", "dev", "test")] == [6973, 500, 1319]
    assert Gsm8k(test_items=500).count("test") == 500
    assert task.content_id().startswith("gsm8k:")
    assert task.content_id() != Gsm8k(revision="other").content_id()


def test_without_the_extra_the_next_command_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DatasetError) as caught:
        Gsm8k().items("test")
    assert "needs the `data` extra; got 'openai/gsm8k'" in str(caught.value)
    assert "next: pip install 'nullarm[data]'" in str(caught.value)


def test_a_hub_that_cannot_be_reached_is_a_data_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unreachable:
        @staticmethod
        def load_dataset(*_: object, **__: object) -> None:
            raise ConnectionError("offline")

    monkeypatch.setitem(sys.modules, "datasets", Unreachable)
    with pytest.raises(
        DatasetError, match=r"neither cached nor reachable: offline.*next: hf download --repo-type dataset"
    ):
        Gsm8k().items("test")


def test_rows_of_the_hub_are_taken_as_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    class Hub:
        @staticmethod
        def load_dataset(*names: str, **options: str) -> list[Row]:
            asked.append((names, options))
            return gsm8k_rows(5)

    monkeypatch.setitem(sys.modules, "datasets", Hub)
    assert [i.id for i in Gsm8k(test_items=5).items("test")] == [f"test-{n}" for n in range(5)]
    assert asked == [(("openai/gsm8k", "main"), {"split": "test", "revision": "main"})]


def test_generated_answers_are_compared_by_number(gsm8k: Gsm8k, world_model: tuple[Any, Any]) -> None:
    results = evaluate(gsm8k, *world_model, gsm8k.items("test")[:4], batch_size=2)
    assert [r.target for r in results] == ["0", "2", "4", "6"]
    assert all(r.correct == (r.prediction == r.target) for r in results)
    assert all(r.loss > 0 for r in results)


def test_an_answer_without_a_number_is_refused(gsm8k: Gsm8k) -> None:
    write(Path(gsm8k.path or "") / "test.jsonl", [{"question": "q", "answer": "none"}])
    with pytest.raises(DatasetError, match="gsm8k row test-0: the answer has no number"):
        gsm8k.items("test")


def test_a_part_larger_than_the_whole_is_refused() -> None:
    with pytest.raises(DatasetError, match="does not fit into the published rows; got 9; valid: 1 to 8"):
        chosen("dev", 9, seed=0, dev_items=9, test_items=None)


def test_a_part_is_random_and_repeatable() -> None:
    part = chosen("test", 100, seed=0, dev_items=1, test_items=10)
    assert part == chosen("test", 100, seed=0, dev_items=1, test_items=10) == sorted(part)
    assert part != chosen("test", 100, seed=1, dev_items=1, test_items=10)
    assert part != list(range(10))
