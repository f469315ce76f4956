from typing import Any

import pytest

from nullarm.errors import DatasetError
from nullarm.models.tasks import Task, make_task
from nullarm.models.tasks.factory import KINDS


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "jsonl"])
def test_a_kind_alone_makes_a_task(kind: str) -> None:
    task = make_task({"kind": kind})
    assert isinstance(task, Task)
    assert task.name == kind
    assert task.content_id().startswith(f"{kind}:")
    assert (task.num_labels > 0) == (task.head == "seqcls")
    assert task.tokens_per_item > 0
    assert task.primary == "accuracy"


def test_settings_reach_the_task() -> None:
    assert make_task({"kind": "world_relations", "dev_items": 9}).count("dev") == 9
    assert make_task({"kind": "gsm8k", "test_items": None}).count("test") == 1319
    assert make_task({"kind": "planted", "update_size": 1}).content_id()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "task.kind names no kind of task; valid: "),
        (
            {"kind": "gsm"},
            "(did you mean 'gsm8k'?); got 'gsm'; valid: arc_challenge, c_eval, class_of_word, conversations, glue,",
        ),
        ({"kind": ["x"]}, "task.kind names no kind of task"),
        ({"kind": "gsm8k", "dev_item": 3}, "task.dev_item is no setting of gsm8k (did you mean 'dev_items'?); got 3"),
        ({"kind": "gsm8k", "dev_items": "3"}, "task.dev_items of gsm8k is of the wrong type; got '3'; valid: int"),
        ({"kind": "gsm8k", "dev_items": True}, "task.dev_items of gsm8k is of the wrong type; got True; valid: int"),
        ({"kind": "gsm8k", "test_items": 1.5}, "got 1.5; valid: int or nothing"),
        ({"kind": "gsm8k", "name": "x"}, "task.name is no setting of gsm8k"),
        ({"kind": "mmlu_redux", "dev_items": None}, "task.dev_items of mmlu_redux is of the wrong type"),
        ({"kind": "jsonl"}, "task.train of jsonl is missing"),
    ],
)
def test_wrong_settings_name_culprit_and_valid_ones(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(DatasetError) as caught:
        make_task(settings)
    assert words in str(caught.value)


def test_every_kind_is_named_after_its_task() -> None:
    assert all(task.name == kind for kind, task in KINDS.items())
