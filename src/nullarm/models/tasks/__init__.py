"""Tasks: items to train on and to be scored on, with a result for every item."""

from nullarm.models.tasks.base import AnsweredTask, Encoded, Item, ItemResult, Split, Task
from nullarm.models.tasks.evaluate import evaluate
from nullarm.models.tasks.factory import make_task

__all__ = ["AnsweredTask", "Encoded", "Item", "ItemResult", "Split", "Task", "evaluate", "make_task"]
