"""From the task settings of a study to a task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, get_type_hints

from nullarm.errors import DatasetError, nearest
from nullarm.models.tasks.base import Task
from nullarm.models.tasks.c_eval import CEval
from nullarm.models.tasks.class_of_word import ClassOfWord
from nullarm.models.tasks.conversations import Conversations
from nullarm.models.tasks.glue import Glue
from nullarm.models.tasks.gsm8k import Gsm8k
from nullarm.models.tasks.jsonl import Jsonl
from nullarm.models.tasks.mmlu_redux import MmluRedux
from nullarm.models.tasks.planted import Planted
from nullarm.models.tasks.science_questions import ArcChallenge, OpenBookQA
from nullarm.models.tasks.world_relations import WorldRelations

KINDS: Mapping[str, type[Task]] = {
    task.name: task
    for task in (
        ArcChallenge, CEval, ClassOfWord, Conversations, Glue, Gsm8k, Jsonl, MmluRedux, OpenBookQA, Planted,
        WorldRelations,
    )
}  # fmt: skip
"""Every kind of task, by the name a study uses. To add one, write a `Task` and name it here."""


def make_task(settings: Mapping[str, Any]) -> Task:
    """The task that `settings` describe: `{"kind": "gsm8k", "dev_items": 500}`.

    Raises:
        DatasetError: The kind or a setting is unknown, or a setting is of the wrong type or out of range.
    """
    rest = dict(settings)
    kind = rest.pop("kind", None)
    if not isinstance(kind, str) or kind not in KINDS:
        hint = nearest(str(kind), KINDS)
        raise DatasetError(f"task.kind names no kind of task{hint}", value=kind, valid=sorted(KINDS))
    task = KINDS[kind]
    known = {field.name for field in fields(task)}  # type: ignore[arg-type]
    for name, value in rest.items():
        if name not in known:
            raise DatasetError(
                f"task.{name} is no setting of {kind}{nearest(name, known)}", value=value, valid=sorted(known)
            )
        _check_type(kind, name, value, get_type_hints(task)[name])
    return task(**rest)


def _check_type(kind: str, name: str, value: object, wanted: Any) -> None:
    """Settings are whole numbers, numbers, texts or truth values; an optional one may be None."""
    allowed = getattr(wanted, "__args__", (wanted,))
    if type(value) in allowed or (type(value) is int and float in allowed):
        return
    words = " or ".join("nothing" if a is type(None) else a.__name__ for a in allowed)
    raise DatasetError(f"task.{name} of {kind} is of the wrong type", value=value, valid=words)
