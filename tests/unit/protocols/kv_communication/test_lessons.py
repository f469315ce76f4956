from __future__ import annotations

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from communication_models import open_fuser, prompts, receiver, sharer

from nullarm.errors import DatasetError
from nullarm.protocols.kv_communication.cells.lessons import Lesson, Lessons, collated, fused_loss
from nullarm.protocols.kv_communication.communication.exchange import Exchange, Heard
from nullarm.protocols.kv_communication.communication.prefill import Prefilled
from nullarm.protocols.kv_communication.fuser.projector import SourceKV
from nullarm.training.batches import target_count

LENGTHS = (6, 3, 4)
ANSWERS = ([7, 8, 9], [5], [6, 7])


def lessons() -> list[Lesson]:
    """Of unequal lengths; the sharer reads one token more than the receiver, and one token takes nothing."""
    found = []
    for n, answer in zip(LENGTHS, ANSWERS, strict=True):
        (mine,), (theirs,) = prompts(n, seed=n), prompts(n + 1, seed=100 + n)
        found.append(Lesson(Exchange(mine, (Heard(theirs, [-1, *range(2, n), -1]),)), answer))
    return found


def intact(cache: Prefilled) -> dict[int, SourceKV]:
    return dict(enumerate(cache.kv))


def test_the_loss_of_a_batch_is_the_mean_over_its_answers_tokens() -> None:
    mine, theirs = receiver(), sharer()
    fuser, given = open_fuser(theirs, mine), lessons()
    whole = fused_loss(fuser, collated(given), mine, theirs, intact)
    single = [fused_loss(fuser, collated([lesson]), mine, theirs, intact) * len(lesson.answer) for lesson in given]

    torch.testing.assert_close(whole, torch.stack(single).sum() / 6, rtol=1e-4, atol=1e-5)
    assert target_count(collated(given)) == 6


def test_with_closed_gates_it_is_the_receivers_own_loss() -> None:
    mine, theirs = receiver(), sharer()
    fuser, lesson = open_fuser(theirs, mine, gates=-1.0), lessons()[0]
    ids = torch.tensor([[*lesson.exchange.receiver_ids, *lesson.answer]])
    logits = mine(input_ids=ids).logits[0, len(lesson.exchange.receiver_ids) - 1 : -1]

    expected = F.cross_entropy(logits, torch.tensor(lesson.answer))
    found = fused_loss(fuser, collated([lesson]), mine, theirs, intact)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_what_the_wire_does_is_trained_on() -> None:
    mine, theirs = receiver(), sharer()
    fuser, batch = open_fuser(theirs, mine), collated(lessons())

    def silent(cache: Prefilled) -> dict[int, SourceKV]:
        return {n: (key.zero_(), value.zero_()) for n, (key, value) in enumerate(cache.kv)}

    assert not fused_loss(fuser, batch, mine, theirs, silent).allclose(fused_loss(fuser, batch, mine, theirs, intact))


def test_every_lesson_is_there_once_an_epoch_and_a_batch_depends_on_its_number_alone() -> None:
    found = [Lesson(Exchange([1, 2, 3], (Heard([4, 5], [0, 1, -1]),)), [n]) for n in range(10)]
    source = Lessons(found, batch_size=3, seed=0)
    epochs = [[source.batch(4 * epoch + n)["labels"][:, 1].tolist() for n in range(4)] for epoch in range(2)]

    assert [Counter(label for batch in epoch for label in batch) for epoch in epochs] == [Counter(range(10))] * 2
    assert epochs[0] != epochs[1]
    late = Lessons(found, batch_size=3, seed=0).batch(6)["labels"][:, 1].tolist()
    assert late == epochs[1][2]
    with pytest.raises(DatasetError, match="the training set is empty"):
        Lessons([], batch_size=3, seed=0)
