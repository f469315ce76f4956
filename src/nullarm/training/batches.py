"""Batches by number: `batch(i)` depends on the items, the seed and `i`, so a sampler's position is an integer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch

from nullarm.errors import DatasetError

IGNORED = -100
"""Label of a position that carries no loss (the convention of `torch.nn.functional.cross_entropy`)."""

POOL_BATCHES = 32
"""Batches among which items are sorted by length: enough to save padding, few enough to stay random."""

Indices = npt.NDArray[np.int64]


class Encoded(Protocol):
    """An item as token ids and labels; prompt positions are labelled -100."""

    @property
    def ids(self) -> Sequence[int]:
        """Token ids."""

    @property
    def labels(self) -> Sequence[int] | Sequence[float]:
        """One label per token, or a single class or value."""


class Batches:
    """An endless, indexable, stateless sequence of padded batches.

    Each epoch is a fresh permutation drawn from (seed, epoch). Inside a pool of 32 batches items are sorted by
    length, and the batches are then put in random order. Every item occurs once per epoch; batch sizes within a pool
    differ by at most one.

    Args:
        items: The training items.
        batch_size: Most items in a batch.
        seed: Of the order.
        pad_id: Token id to pad with, on the right.
        labels: `tokens` for one label per token, `item` for one class or value per item.

    Raises:
        DatasetError: No items, or an item that is empty, mislabelled or without any label to learn from.
    """

    def __init__(
        self,
        items: Sequence[Encoded],
        *,
        batch_size: int,
        seed: int,
        pad_id: int,
        labels: Literal["tokens", "item"] = "tokens",
    ) -> None:
        if not items:
            raise DatasetError("the training set is empty", next_command="check the task's split and filters")
        for index, item in enumerate(items):
            _check(index, item, labels)
        self._ids = [np.asarray(item.ids, dtype=np.int64) for item in items]
        # A value to regress on has the type of the logits it is compared with.
        kind = np.float32 if isinstance(items[0].labels[0], float) else np.int64
        self._labels = [np.asarray(item.labels, dtype=kind) for item in items]
        self._lengths = np.array([len(ids) for ids in self._ids], dtype=np.int64)
        self._pad_id, self._per_item = pad_id, labels == "item"
        self._epochs = Epochs(self._lengths, batch_size, seed)

    @property
    def per_epoch(self) -> int:
        """Batches in an epoch, the same in each."""
        return self._epochs.batches

    def items_at(self, index: int) -> Indices:
        """Positions, in the list of items, of those in batch `index`."""
        return self._epochs.items_at(index)

    def batch(self, index: int) -> dict[str, torch.Tensor]:
        """Batch `index`: `input_ids`, `attention_mask` [batch, position] and `labels` ([batch] for classes)."""
        chosen = self.items_at(index)
        shape = (len(chosen), int(self._lengths[chosen].max()))
        ids, mask = np.full(shape, self._pad_id, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        labels = np.full((len(chosen), 1) if self._per_item else shape, IGNORED, dtype=self._labels[0].dtype)
        for row, item in enumerate(chosen):
            length = self._lengths[item]
            ids[row, :length] = self._ids[item]
            mask[row, :length] = 1
            # Padding is labelled apart from the token ids: where pad is also EOS, EOS keeps its label.
            labels[row, : len(self._labels[item])] = self._labels[item]
        if self._per_item:
            labels = labels[:, 0]
        arrays = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


class Epochs:
    """Which items form each batch, without end: a fresh order every epoch, of which the present one is held.

    Args:
        lengths: [items] length of each, tokens.
        batch_size: Most items in a batch.
        seed: Of the order.
    """

    def __init__(self, lengths: Indices, batch_size: int, seed: int) -> None:
        self._lengths, self._batch_size, self._seed = lengths, batch_size, seed
        self._order = (0, epoch_order(lengths, batch_size, seed, epoch=0))

    @property
    def batches(self) -> int:
        """Batches in an epoch, the same in each."""
        return len(self._order[1])

    def items_at(self, index: int) -> Indices:
        """Positions, in the list of items, of those in batch `index`."""
        epoch, position = divmod(index, self.batches)
        if self._order[0] != epoch:
            self._order = (epoch, epoch_order(self._lengths, self._batch_size, self._seed, epoch))
        return self._order[1][position]


def epoch_order(lengths: Indices, batch_size: int, seed: int, epoch: int) -> list[Indices]:
    """Which items form each batch of an epoch, in order."""
    rng = np.random.default_rng([seed, epoch])
    pools = np.array_split(rng.permutation(len(lengths)), -(-len(lengths) // (batch_size * POOL_BATCHES)))
    batches: list[Indices] = []
    for pool in pools:
        by_length = pool[np.argsort(lengths[pool], kind="stable")]
        batches += np.array_split(by_length, -(-len(pool) // batch_size))
    return [batches[i] for i in rng.permutation(len(batches))]


def target_count(batch: dict[str, torch.Tensor]) -> int:
    """Labels in a batch that carry loss; the first position of a causal model is never predicted.

    Without labels per token, the number of items.
    """
    labels = batch.get("labels")
    if labels is not None and labels.ndim == 2:
        return int((labels[:, 1:] != IGNORED).sum())
    return len(next(iter(batch.values())))


def _check(index: int, item: Encoded, labels: Literal["tokens", "item"]) -> None:
    if not item.ids:
        raise DatasetError(f"training item {index} has no tokens")
    expected = len(item.ids) if labels == "tokens" else 1
    if len(item.labels) != expected:
        raise DatasetError(
            f"training item {index} has {len(item.labels)} labels", valid=f"{expected}, one per {labels.rstrip('s')}"
        )
    if labels == "tokens" and all(label == IGNORED for label in item.labels[1:]):
        raise DatasetError(
            f"training item {index} has no label to learn from",
            next_command="raise the completion length or drop the item",
        )
