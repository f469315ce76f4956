"""Clusters of items, as the table of an evaluation writes them."""

from __future__ import annotations

from nullarm.models.tasks.base import Item
from nullarm.protocols.kv_communication.cells.evaluate import _table
from nullarm.protocols.kv_communication.channels.asked import Answered, Answering
from nullarm.protocols.kv_communication.planning import answered_task

ANSWERING = Answering(answered_task({"kind": "world_relations"}), True, 8, False, "")


def test_labels_of_two_data_sets_never_coincide() -> None:
    items = [Item(id=str(n), prompt="?", answer="A", cluster=cluster) for n, cluster in enumerate(("a", "", None))]
    answers = [Answered(item, True, "A") for item in items]
    written = {name: _table(answers, name, ANSWERING)["cluster"].to_pylist() for name in ("words", "sums")}
    assert written == {"words": ["words:a", "words:", None], "sums": ["sums:a", "sums:", None]}
