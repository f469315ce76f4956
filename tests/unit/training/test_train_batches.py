from __future__ import annotations

import numpy as np
import pytest
import torch
from toy_training import Item, toy_items

from nullarm.errors import DatasetError
from nullarm.training.batches import IGNORED, Batches, epoch_order, target_count


def batches(items: list[Item], batch_size: int = 4, seed: int = 0) -> Batches:
    return Batches(items, batch_size=batch_size, seed=seed, pad_id=0)


@pytest.mark.parametrize("count", [1, 3, 4, 37, 300])
def test_every_item_occurs_once_per_epoch(count: int) -> None:
    source = batches(toy_items(count))
    for epoch in range(2):
        seen = [source.items_at(epoch * source.per_epoch + i) for i in range(source.per_epoch)]
        assert sorted(np.concatenate(seen).tolist()) == list(range(count))
        assert max(map(len, seen)) <= 4


def test_order_depends_on_seed_and_epoch_and_on_nothing_else() -> None:
    lengths = np.arange(64) % 9 + 1

    def order(seed: int, epoch: int) -> list[list[int]]:
        return [batch.tolist() for batch in epoch_order(lengths, 4, seed, epoch)]

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)


def test_a_batch_is_the_same_whatever_was_asked_before() -> None:
    forwards, backwards = batches(toy_items()), batches(toy_items())
    indices = range(3 * forwards.per_epoch)
    first = {i: forwards.batch(i) for i in indices}
    second = {i: backwards.batch(i) for i in reversed(indices)}
    for i in indices:
        assert all(torch.equal(first[i][name], second[i][name]) for name in ("input_ids", "attention_mask", "labels"))


def test_padding_is_on_the_right_unattended_and_without_loss() -> None:
    batch = batches([Item([5, 6, 7], [IGNORED, 6, 7]), Item([8, 9], [IGNORED, 9])]).batch(0)
    short = batch["attention_mask"].sum(1).argmin()
    assert batch["input_ids"][short].tolist() == [8, 9, 0]
    assert batch["attention_mask"][short].tolist() == [1, 1, 0]
    assert batch["labels"][short].tolist() == [IGNORED, 9, IGNORED]
    assert batch["labels"][1 - short].tolist() == [IGNORED, 6, 7]
    assert target_count(batch) == 3


def test_sorting_by_length_saves_padding() -> None:
    items = [Item([1] * n, [1] * n) for n in np.random.default_rng(0).integers(2, 60, 256)]
    source = batches(items, batch_size=8)
    padded = sum(source.batch(i)["input_ids"].numel() for i in range(source.per_epoch))
    unsorted = [items[i : i + 8] for i in range(0, 256, 8)]
    in_given_order = sum(len(batch) * max(len(item.ids) for item in batch) for batch in unsorted)
    assert padded < 0.75 * in_given_order


def test_classes_come_one_per_item() -> None:
    items = [Item([1, 2, 3], [1]), Item([4, 5], [0])]
    batch = Batches(items, batch_size=2, seed=0, pad_id=0, labels="item").batch(0)
    assert batch["labels"].shape == (2,)
    assert target_count(batch) == 2
    of_the_long_one = batch["labels"][batch["attention_mask"].sum(1).argmax()]
    assert of_the_long_one == 1


def test_values_to_regress_on_stay_fractions() -> None:
    batch = Batches([Item([1, 2], [2.5])], batch_size=1, seed=0, pad_id=0, labels="item").batch(0)
    assert batch["labels"].tolist() == [2.5]
    assert batch["labels"].dtype == torch.float32


@pytest.mark.parametrize(
    ("items", "problem"),
    [
        ([], "the training set is empty"),
        ([Item([], [])], "training item 0 has no tokens"),
        ([Item([1, 2], [IGNORED, 2]), Item([1, 2], [2])], "training item 1 has 1 labels"),
        ([Item([1, 2], [IGNORED, IGNORED])], "training item 0 has no label to learn from"),
        ([Item([1, 2], [1, IGNORED])], "training item 0 has no label to learn from"),
    ],
)
def test_items_that_cannot_be_trained_on_are_named(items: list[Item], problem: str) -> None:
    with pytest.raises(DatasetError, match=problem):
        batches(items)
