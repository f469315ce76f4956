"""Caches against text: at equal bytes, and in time as the link gets faster."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nullarm.protocols.kv_communication.budget.arms import ArmResult
from nullarm.protocols.kv_communication.budget.comparison import Compared, compare
from nullarm.protocols.kv_communication.budget.curve import Point, frontier
from nullarm.protocols.kv_communication.budget.evaluations import TOTAL
from nullarm.study.spec import Analysis


@dataclass(frozen=True)
class EqualBytes:
    """The cache arm whose bytes are nearest to those of a text arm, and what it gains over the text."""

    text: ArmResult
    cache: ArmResult
    compared: Compared


@dataclass(frozen=True)
class MessageTime:
    """Seconds from prompt to answer, as a function of bandwidth.

    Attributes:
        result: The arm.
        fixed_s: Everything but the bytes on the wire: both models, codec, fuser, round trips.
        gbit: What crosses the wire.
    """

    result: ArmResult
    fixed_s: float
    gbit: float

    def seconds(self, gbit_s: float) -> float:
        """Mean time of an item at a bandwidth in gigabits a second."""
        return self.fixed_s + self.gbit / gbit_s


def equal_bytes(points: Sequence[Point], analysis: Analysis) -> Iterator[EqualBytes]:
    """Each text arm beside the nearest cache arm, by the ratio of their bytes; of one data set."""
    caches = [p.result for p in points if p.result.evaluations[0].fused and p.result.evaluations[0].is_option]
    for text in _texts(points):
        if caches and text.wire_bytes > 0:
            nearest = min(caches, key=lambda cache: abs(math.log(cache.wire_bytes / text.wire_bytes)))
            yield EqualBytes(text, nearest, compare(nearest, text, analysis))


def message_times(points: Sequence[Point]) -> list[MessageTime]:
    """Of every arm on the frontier that sends something, and of every text arm; of one data set."""
    sending = [p.result for p in frontier(points) if p.result.evaluations[0].fused]
    return [_time(result) for result in (*sending, *_texts(points))]


def crossing(first: MessageTime, second: MessageTime) -> float | None:
    """Bandwidth in gigabits a second at which both take equally long; None where one is always the faster."""
    more_bytes = first.gbit - second.gbit
    less_time = round(second.fixed_s - first.fixed_s, 9)  # below a nanosecond is rounding
    return more_bytes / less_time if more_bytes * less_time > 0 else None


def _texts(points: Sequence[Point]) -> list[ArmResult]:
    return [p.result for p in points if p.result.channel["via"] == "text"]


def _time(result: ArmResult) -> MessageTime:
    gbit = 8 * result.wire_bytes / 1e9
    on_the_wire = gbit / result.evaluations[0].link.bandwidth_gbit_s
    return MessageTime(result, result.mean_seconds(TOTAL) - on_the_wire, gbit)
