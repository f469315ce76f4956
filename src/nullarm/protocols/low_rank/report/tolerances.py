"""The source's tolerances on this study's own repetitions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from nullarm.protocols.low_rank.results import ArmResult
from nullarm.protocols.low_rank.sessions import TimingSession
from nullarm.protocols.low_rank.tolerances import ALLOWED, checks
from nullarm.report import Block, Table
from nullarm.store.study_store import StudyStore


def tolerances(store: StudyStore, results: Sequence[ArmResult], held: Sequence[TimingSession]) -> Iterator[Block]:
    """What was measured more than once under one treatment; nothing where nothing was."""
    if found := checks(results, held, store.lock.study.parameters.get("rerun")):
        yield Table(
            title="What was measured twice",
            columns=("measure", "compared", "found", "tolerance", "kept"),
            rows=tuple((c.measure, c.compared, c.found, ALLOWED[c.measure], c.kept) for c in found),
            cells=tuple(c.cells for c in found),
            caption="Only what may be believed. Throughput: the control against itself (A/A), treated over control "
            "− 1; and its medians in several sessions, the largest over the smallest − 1. Perplexity: the largest less "
            "the smallest of arms that ran the same weights, each evaluated in a cell of its own.",
        )
