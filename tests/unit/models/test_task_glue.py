import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from nullarm.errors import DatasetError
from nullarm.models.load import load_sequence_classifier
from nullarm.models.tasks.agreement import matthews, pearson
from nullarm.models.tasks.evaluate import evaluate
from nullarm.models.tasks.glue import SUBSETS, Glue

Row = Mapping[str, Any]


def write(path: Path, rows: list[Row]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def glue_rows(subset: str, n: int) -> list[Row]:
    facts, rng = SUBSETS[subset], random.Random(0)
    labels = [rng.randrange(len(facts.labels)) if facts.labels else rng.uniform(0, 5) for _ in range(n)]
    return [{**{key: f"{key} {i} red" for key in facts.texts}, "label": label} for i, label in enumerate(labels)]


def glue(directory: Path, subset: str) -> Glue:
    write(directory / "train.jsonl", glue_rows(subset, 12))
    write(directory / f"{SUBSETS[subset].validation}.jsonl", glue_rows(subset, 8))
    return Glue(subset=subset, path=str(directory), dev_items=4)


@pytest.mark.parametrize("subset", SUBSETS)
def test_every_subset_is_scored(tmp_path: Path, subset: str) -> None:
    task = glue(tmp_path, subset)
    assert [task.count(split) for split in ("train", "dev", "test")] == [8, 4, 8]
    model, tokenizer = load_sequence_classifier("builtin:world", task.num_labels)
    items = task.items("test")
    results = evaluate(task, model, tokenizer, items, batch_size=3)
    assert [r.item_id for r in results] == [i.id for i in items]
    metrics = task.metrics(results)
    assert {task.primary, "loss", "accuracy"} <= set(metrics)
    assert ("matthews" in metrics) == (subset == "cola")
    if task.facts.labels:
        assert all(r.prediction in task.facts.labels and r.correct == (r.prediction == r.target) for r in results)
    else:
        assert all(r.loss == pytest.approx((float(r.prediction) - float(r.target)) ** 2) for r in results)


def test_the_loss_is_that_of_the_classifier(tmp_path: Path) -> None:
    import torch

    task = glue(tmp_path, "mnli")
    model, tokenizer = load_sequence_classifier("builtin:world", 3)
    items = task.items("test")
    batched = evaluate(task, model, tokenizer, items, batch_size=8)
    for result, example in zip(batched, task.encode_training(tokenizer, items), strict=True):
        with torch.no_grad():
            loss = model(input_ids=torch.tensor([example.ids]), labels=torch.tensor(example.labels)).loss
        assert result.loss == pytest.approx(loss.item(), abs=1e-4)


def test_classes_are_numbers_and_similarities_are_values(tmp_path: Path, world_model: tuple[Any, Any]) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    paired, similar = glue(tmp_path / "a", "rte"), glue(tmp_path / "b", "stsb")
    [example, *_] = paired.encode_training(world_model[1], paired.items("train"))
    assert example.labels in ([0], [1])
    [example, *_] = similar.encode_training(world_model[1], similar.items("train"))
    assert isinstance(example.labels[0], float)
    assert "\n" in world_model[1].decode(example.ids)
    assert (paired.num_labels, similar.num_labels, similar.primary) == (2, 1, "pearson")


def test_long_texts_are_cut(tmp_path: Path, world_model: tuple[Any, Any]) -> None:
    task = glue(tmp_path, "sst2")
    write(tmp_path / "train.jsonl", [{"sentence": "red " * 500, "label": 0}] * 12)
    assert {len(e.ids) for e in task.encode_training(world_model[1], task.items("train"))} == {128}


@pytest.mark.parametrize(
    ("subset", "label", "words"),
    [
        ("sst2", -1, "the label is no class; got -1; valid: 0, 1"),
        ("sst2", True, "the label is no class"),
        ("mnli", 3, "valid: 0, 1, 2"),
        ("stsb", 7, "the label is no similarity; got 7; valid: a number from 0 to 5"),
        ("stsb", None, "the label is no similarity"),
    ],
)
def test_hidden_and_wrong_labels_are_refused(tmp_path: Path, subset: str, label: Any, words: str) -> None:
    task = glue(tmp_path, subset)
    write(tmp_path / f"{task.facts.validation}.jsonl", [{**glue_rows(subset, 1)[0], "label": label}])
    with pytest.raises(DatasetError) as caught:
        task.items("test")
    assert words in str(caught.value)
    assert f"glue row {subset}/" in str(caught.value)


def test_an_unknown_subset_names_the_nearest() -> None:
    with pytest.raises(DatasetError, match=r"GLUE has no such subset \(did you mean 'sst2'\?\); got 'sst'"):
        Glue(subset="sst")


def test_glue_sizes_and_gates_are_the_published() -> None:
    assert [Glue(subset="sst2").count(split) for split in ("train", "dev", "test")] == [67149, 200, 872]
    assert {name: facts.gate for name, facts in SUBSETS.items()} == {
        "sst2": 0.75, "qnli": 0.75, "mrpc": 0.75, "mnli": 0.7, "cola": 0.7, "qqp": 0.8, "stsb": 0.8, "rte": 0.6,
        "wnli": 0.55,
    }  # fmt: skip


def test_correlations() -> None:
    assert pearson([(1, 2), (2, 4), (3, 6)]) == pytest.approx(1)
    assert pearson([(1, 3), (2, 1), (3, 2)]) == pytest.approx(-0.5)
    assert pearson([(1, 3), (1, 1)]) == 0
    pairs = [(True, True)] * 6 + [(True, False)] * 1 + [(False, True)] * 2 + [(False, False)] * 3
    assert matthews(pairs) == pytest.approx((6 * 3 - 1 * 2) / (7 * 8 * 5 * 4) ** 0.5)
    with pytest.raises(ValueError, match="no pairs"):
        pearson([])
