from __future__ import annotations

from collections import Counter

import pytest
from small_lessons import read

from nullarm.errors import DatasetError
from nullarm.protocols.kv_communication.cells.lessons import Lesson, Lessons
from nullarm.protocols.kv_communication.communication.exchange import Heard


def test_every_lesson_is_there_once_an_epoch_and_a_batch_depends_on_its_number_alone() -> None:
    found = [Lesson(read([1, 2, 3], Heard([4, 5], [0, 1, -1])), [n]) for n in range(10)]
    source = Lessons(found, batch_size=3, seed=0)
    epochs = [[source.batch(4 * epoch + n)["labels"][:, 1].tolist() for n in range(4)] for epoch in range(2)]

    assert [Counter(label for batch in epoch for label in batch) for epoch in epochs] == [Counter(range(10))] * 2
    assert epochs[0] != epochs[1]
    late = Lessons(found, batch_size=3, seed=0).batch(6)["labels"][:, 1].tolist()
    assert late == epochs[1][2]
    with pytest.raises(DatasetError, match="the training set is empty"):
        Lessons([], batch_size=3, seed=0)
