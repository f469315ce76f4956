"""A text and the best cache that takes no more bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nullarm.protocols.kv_communication.budget.arms import ArmResult
from nullarm.protocols.kv_communication.budget.comparison import Compared, compare
from nullarm.protocols.kv_communication.budget.points import Point
from nullarm.study.spec import Analysis

SLACK = 1.25
"""A cache of up to this many times the text's bytes still counts as no larger."""


@dataclass(frozen=True)
class EqualBytes:
    """A text arm beside a cache arm.

    Attributes:
        text: The text.
        cache: The most accurate cache within `SLACK`; the smallest one where none is that small.
        compared: What the cache gains over the text; None where none is that small.
    """

    text: ArmResult
    cache: ArmResult
    compared: Compared | None


def equal_bytes(points: Sequence[Point], analysis: Analysis, obstacle: str | None = None) -> Iterator[EqualBytes]:
    """Each text arm beside the best cache that is no larger; of one data set.

    Args:
        points: Of `curve_points`.
        analysis: As declared.
        obstacle: Why no verdict may be given, where that is so.
    """
    caches = [p.result for p in points if p.kind == "cache"]
    for text in (p.result for p in points if p.kind == "text"):
        if not caches or text.wire_bytes == 0:
            continue
        small = [cache for cache in caches if cache.wire_bytes <= SLACK * text.wire_bytes]
        if small:
            best = max(small, key=lambda cache: (cache.accuracy, -cache.wire_bytes))
            yield EqualBytes(text, best, compare(best, text, analysis, obstacle))
        else:
            yield EqualBytes(text, min(caches, key=lambda cache: cache.wire_bytes), None)
