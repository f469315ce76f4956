"""What a fuser is trained on: exchanges with their answers, as padded batches by number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nullarm.errors import DatasetError
from nullarm.models.tasks.base import IGNORED
from nullarm.protocols.kv_communication.communication.exchange import Exchange
from nullarm.protocols.kv_communication.communication.fuse import source_index
from nullarm.protocols.kv_communication.communication.prefill import padded
from nullarm.training.batches import Epochs

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Lesson:
    """One training example.

    Attributes:
        exchange: What both models read; one sharer.
        answer: Tokens of the receiver that follow the prompt, end of text included.
    """

    exchange: Exchange
    answer: list[int]

    @property
    def tokens(self) -> tuple[int, int]:
        """How many the receiver has, prompt and answer, and how many the sharer, the prompt alone."""
        return len(self.exchange.receiver_ids) + len(self.answer), len(self.exchange.sharers[0].ids)


class Lessons:
    """Padded batches by number; each epoch is a permutation drawn from the seed and its own number.

    A batch has `receiver_ids`, `attention_mask`, `source` [batch, prefix], padded on the left: the prompt without its
    last token; `sharer_ids`, `sharer_mask` [batch, sharer tokens]; `answer_ids`, `answer_mask` [batch, answer]: the
    prompt's last token and all of the answer but its last; and `labels` [batch, 1 + answer], of which the first column
    carries no loss, as causal models count.

    Args:
        lessons: The examples.
        batch_size: Most of them in a batch.
        seed: Of the order.

    Raises:
        DatasetError: There are none.
    """

    def __init__(self, lessons: Sequence[Lesson], *, batch_size: int, seed: int) -> None:
        if not lessons:
            raise DatasetError("the training set is empty", next_command="check the task's split and `train_items`")
        lengths = np.array([len(lesson.exchange.receiver_ids) for lesson in lessons], dtype=np.int64)
        self._lessons, self._epochs = lessons, Epochs(lengths, batch_size, seed)

    def batch(self, index: int) -> Batch:
        """Batch `index`."""
        return collated([self._lessons[i] for i in self._epochs.items_at(index)])


def collated(lessons: Sequence[Lesson]) -> Batch:
    """One batch, see `Lessons`."""
    exchanges = [lesson.exchange for lesson in lessons]
    receiver_ids, mask = padded([e.receiver_ids[:-1] for e in exchanges], "cpu", side="left")
    sharer_ids, sharer_mask = padded([e.sharers[0].ids for e in exchanges], "cpu", side="left")
    run = [[lesson.exchange.receiver_ids[-1], *lesson.answer[:-1]] for lesson in lessons]
    answer_ids, answer_mask = padded(run, "cpu", side="right")
    wanted, _ = padded([lesson.answer for lesson in lessons], "cpu", side="right")
    labels = F.pad(wanted.where(answer_mask, torch.tensor(IGNORED)), (1, 0), value=IGNORED)
    return {
        "receiver_ids": receiver_ids,
        "attention_mask": mask,
        "source": source_index([e.sharers[0] for e in exchanges], sharer_mask),
        "sharer_ids": sharer_ids,
        "sharer_mask": sharer_mask,
        "answer_ids": answer_ids,
        "answer_mask": answer_mask,
        "labels": labels,
    }
