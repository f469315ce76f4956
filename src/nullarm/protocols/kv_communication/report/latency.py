"""Where the time of a message goes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from nullarm.protocols.kv_communication.budget.arms import arm_results, datasets
from nullarm.protocols.kv_communication.budget.evaluations import TOTAL, TRANSFER, Evaluation
from nullarm.report import Block, Table

PARTS = {
    "sharer_s": "sharer",
    "encode_s": "encode",
    TRANSFER: "transfer",
    "decode_s": "decode",
    "receiver_s": "receiver",
    "fuse_s": "fuse",
    "answer_s": "answer",
    TOTAL: "total",
}
"""Columns, in the order in which things happen."""


def latency(found: Sequence[Evaluation]) -> Iterator[Block]:
    """A table for each data set: mean milliseconds an item."""
    for dataset in datasets(found):
        results = arm_results(found, dataset)
        yield Table(
            title=f"Mean milliseconds an item: {dataset}",
            columns=("arm", *PARTS.values()),
            rows=tuple((r.arm, *(1000 * r.mean_seconds(part) for part in PARTS)) for r in results),
            cells=tuple(r.cells for r in results),
            caption="One part after the other, as measured in batches; the transfer is that of the measured bytes over "
            "the declared link. The sharer's part is its prefill, or its writing of text.",
        )
