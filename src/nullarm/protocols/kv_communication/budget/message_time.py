"""The time that a message takes as the link gets faster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nullarm.protocols.kv_communication.budget.arms import ArmResult
from nullarm.protocols.kv_communication.budget.evaluations import TOTAL
from nullarm.protocols.kv_communication.budget.points import Point, frontier


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


def message_times(points: Sequence[Point]) -> list[MessageTime]:
    """Of every arm on the frontier that sends something, and of every text arm; of one data set."""
    caches = [p for p in frontier(points) if p.kind == "cache"]
    return [_time(p.result) for p in (*caches, *(p for p in points if p.kind == "text"))]


def crossing(first: MessageTime, second: MessageTime) -> float | None:
    """Bandwidth in gigabits a second at which both take equally long; None where one is always the faster."""
    more_bytes = first.gbit - second.gbit
    less_time = round(second.fixed_s - first.fixed_s, 9)  # below a nanosecond is rounding
    return more_bytes / less_time if more_bytes * less_time > 0 else None


def _time(result: ArmResult) -> MessageTime:
    gbit = 8 * result.wire_bytes / 1e9
    on_the_wire = gbit / result.evaluations[0].link.bandwidth_gbit_s
    return MessageTime(result, result.mean_seconds(TOTAL) - on_the_wire, gbit)
