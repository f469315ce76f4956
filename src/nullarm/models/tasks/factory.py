"""From the task settings of a study to a task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nullarm.models.kinds import of_kind
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
    return of_kind("task", KINDS, settings)
