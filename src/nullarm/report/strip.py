"""The strip under a verdict: its interval against zero and the margin, drawn with plain elements, without scripts."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nullarm.report.blocks import VerdictCard
from nullarm.report.numbers import show

LABEL_ROOM = 9.0
"""Least distance between two labels, in per cent of the strip's width."""


@dataclass(frozen=True, slots=True)
class Strip:
    """Places on the strip in per cent of its width."""

    zero: float
    estimate: float | None
    bar: tuple[float, float] | None
    """Start and width of the interval."""
    band: tuple[float, float] | None
    """Start and width of ± margin."""
    ticks: tuple[tuple[float, str], ...]


def strip(card: VerdictCard) -> Strip | None:
    """The strip of a verdict, or None when it has no estimate and no finite end to draw."""
    drawn = [v for v in (card.estimate, *(card.interval or ())) if v is not None and math.isfinite(v)]
    if not drawn:
        return None
    margin = card.margin or 0.0
    low, high = min(0.0, -margin, *drawn), max(0.0, margin, *drawn)
    room = (high - low) * 0.08 or 1.0
    low, high = low - room, high + room

    def place(value: float) -> float:
        share: float = (min(max(value, low), high) - low) / (high - low)
        return round(share * 100, 2)

    def stretch(start: float, end: float) -> tuple[float, float]:
        return place(start), round(place(end) - place(start), 2)

    estimate = card.estimate if card.estimate is not None and math.isfinite(card.estimate) else None
    return Strip(
        zero=place(0.0),
        estimate=None if estimate is None else place(estimate),
        bar=stretch(*card.interval) if card.interval else None,
        band=stretch(-margin, margin) if margin else None,
        ticks=_ticks(card, place(-margin), place(0.0), place(margin)),
    )


def _ticks(card: VerdictCard, minus: float, zero: float, plus: float) -> tuple[tuple[float, str], ...]:
    if not card.margin or plus - zero < LABEL_ROOM:
        return ((zero, "0"),)
    size = show(card.margin)
    return (minus, f"−{size}"), (zero, "0"), (plus, f"+{size}")
