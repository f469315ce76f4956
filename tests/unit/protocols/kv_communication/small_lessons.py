"""A few lessons of unequal lengths between the tiny models, and what they are trained with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from communication_models import open_fuser, prompts, receiver, sharer

from nullarm.protocols.kv_communication.cells.fused_loss import FusedLoss
from nullarm.protocols.kv_communication.cells.lessons import Lesson, Lessons
from nullarm.protocols.kv_communication.communication.exchange import Exchange, Heard
from nullarm.protocols.kv_communication.communication.prefill import Prefilled
from nullarm.protocols.kv_communication.communication.rendering import Rendered
from nullarm.protocols.kv_communication.fuser import Fuser
from nullarm.protocols.kv_communication.fuser.projector import SourceKV
from nullarm.training.loop import FitResult, fit
from nullarm.training.settings import TrainSettings

LENGTHS = (6, 3, 4)
ANSWERS = ([7, 8, 9], [5], [6, 7])


def lessons() -> list[Lesson]:
    """The sharer reads one token more than the receiver, and one token takes nothing."""
    found = []
    for n, answer in zip(LENGTHS, ANSWERS, strict=True):
        (mine,), (theirs,) = prompts(n, seed=n), prompts(n + 1, seed=100 + n)
        found.append(Lesson(read(mine, Heard(theirs, [-1, *range(2, n), -1])), answer))
    return found


def read(ids: list[int], heard: Heard) -> Exchange:
    """Of tokens that stand for no text."""
    return Exchange(Rendered("", ids, None, (0, 0), (0, 0), templated=False), (heard,))


def intact(cache: Prefilled) -> dict[int, SourceKV]:
    """A wire that does nothing."""
    return dict(enumerate(cache.kv))


def loss_of(fuser: Fuser | None = None) -> FusedLoss:
    """Of a fuser between the tiny models, an open one when none is given."""
    mine, theirs = receiver(), sharer()
    return FusedLoss(open_fuser(theirs, mine) if fuser is None else fuser, mine, theirs, intact)


def trained(
    loss: FusedLoss, directory: Path, *, should_stop: Callable[[], bool] = lambda: False, **changes: Any
) -> FitResult:
    """Some steps on the lessons."""
    knobs: dict[str, Any] = {"steps": 4, "batch_size": 2, "learning_rate": 0.01, **changes}
    return fit(
        loss, Lessons(lessons(), batch_size=2, seed=0), TrainSettings(**knobs), directory=directory, fingerprint="f",
        seed=3, should_stop=should_stop, loss_fn=lambda module, batch: module(batch),
    )  # fmt: skip
