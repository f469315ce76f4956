"""Items that ended in an error: they count as wrong, and are listed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from nullarm.protocols.kv_communication.budget.evaluations import Evaluation
from nullarm.report import Block, Table

SHOWN = 100
"""Items in the list; the counts have all."""


def errors(found: Sequence[Evaluation]) -> Iterator[Block]:
    """How often each error came up in each arm, and on which items."""
    listed = [(e, item, error) for e in found for item, error in e.errors]
    if not listed:
        return
    counts = Counter((e.arm, e.dataset, error) for e, _, error in listed)
    yield Table(
        title="Errors, counted",
        columns=("arm", "data set", "error", "items"),
        rows=tuple((*key, count) for key, count in counts.most_common()),
        caption="They count as wrong answers: the number of items never shrinks.",
    )
    yield Table(
        title="Errors, item by item",
        columns=("arm", "data set", "seed", "item", "error"),
        rows=tuple((e.arm, e.dataset, e.cell.seed, item, error) for e, item, error in listed[:SHOWN]),
        cells=tuple((e.cell.id,) for e, _, _ in listed[:SHOWN]),
        caption=f"The first {SHOWN} of {len(listed)}." if len(listed) > SHOWN else "",
    )
