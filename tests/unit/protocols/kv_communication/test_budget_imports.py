"""Report and runbook rest on the budget, and not the other way round; at whatever moment they import it."""

from __future__ import annotations

from graphlib import TopologicalSorter
from pathlib import Path

import nullarm
from support.imports import Imports

KV = "nullarm.protocols.kv_communication."
INSIDE = [
    (i.module.removeprefix(KV), i.target.removeprefix(KV))
    for i in Imports(Path(nullarm.__file__).parent).inside("loading", "calling")
    if i.module.startswith(KV) and i.target.startswith(KV)
]


def test_the_budget_knows_neither_report_nor_runbook() -> None:
    known = {target.partition(".")[0] for module, target in INSIDE if module.startswith("budget.")}
    assert known == {"budget", "parameters", "tables"}


def test_no_two_modules_of_the_budget_know_each_other() -> None:
    graph: dict[str, set[str]] = {}
    for module, target in INSIDE:
        if module.startswith("budget."):
            graph.setdefault(module, set()).add(target)
    order = list(TopologicalSorter(graph).static_order())  # a circle raises
    assert order.index("budget.points") < order.index("budget.figure") < order.index("budget.curve")
