"""Caches against text: at equal bytes, and in time as the link gets faster."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from nullarm.protocols.kv_communication.budget.equal_bytes import SLACK, EqualBytes, equal_bytes
from nullarm.protocols.kv_communication.budget.message_time import MessageTime, crossing, message_times
from nullarm.protocols.kv_communication.budget.points import Point
from nullarm.report import Axis, Block, Plot, PlotPanel, Series, Table, Value
from nullarm.report.numbers import show, show_percent
from nullarm.study.spec import Analysis

BANDWIDTHS = tuple(10 ** (step / 4) for step in range(-16, 13))
"""From 0.1 Mbit/s to 1 Tbit/s, in gigabits a second."""


def caches_against_text(points: Sequence[Point], analysis: Analysis, obstacle: str | None) -> Iterator[Block]:
    """For each data set with text: the best cache that is no larger, times against bandwidth, and where they cross.

    Args:
        points: Of `curve_points`.
        analysis: As declared.
        obstacle: Why no verdict may be given, where that is so; intervals and p are then withheld.
    """
    for dataset in dict.fromkeys(point.result.dataset for point in points):
        here = [point for point in points if point.result.dataset == dataset]
        if pairs := list(equal_bytes(here, analysis, obstacle)):
            yield _equal(dataset, pairs, analysis)
        times = message_times(here)
        texts = [time for time in times if time.result.channel["via"] == "text"]
        caches = [time for time in times if time not in texts]
        if texts and caches:
            yield _figure(dataset, times)
            yield _crossings(dataset, caches, texts)


def _equal(dataset: str, pairs: Sequence[EqualBytes], analysis: Analysis) -> Table:
    return Table(
        title=f"At equal bytes: {dataset}",
        columns=("text", "bytes", "accuracy", "best cache no larger", "its bytes", "its accuracy", "difference", "low",
                 "high", "p"),
        rows=tuple(map(_equal_row, pairs)),
        cells=tuple((*pair.cache.cells, *pair.text.cells) for pair in pairs),
        caption=f"The most accurate cache of at most {SLACK:g} times the text's bytes. Cache minus text, paired; "
        f"{show_percent(1 - 2 * analysis.alpha)} bootstrap intervals, two-sided p. The cache was chosen for its "
        "accuracy on these items, so its gain is on the high side.",
    )  # fmt: skip


def _equal_row(pair: EqualBytes) -> tuple[Value, ...]:
    text, cache, found = pair.text, pair.cache, pair.compared
    told = (text.arm, text.wire_bytes, text.accuracy)
    if found is None:
        smallest = f"none that small: the smallest cache is {show(round(cache.wire_bytes))} bytes"
        return (*told, smallest, *(None,) * 6)
    low, high = found.ends or (None, None)
    return (*told, cache.arm, cache.wire_bytes, cache.accuracy, found.difference, low, high, found.p)


def _figure(dataset: str, times: Sequence[MessageTime]) -> Plot:
    series = tuple(
        Series(
            name=time.result.arm,
            x=BANDWIDTHS,
            y=[time.seconds(bandwidth) for bandwidth in BANDWIDTHS],
            cells=(time.result.cells,),
        )
        for time in times
    )
    return Plot(
        title=f"{dataset}: time to the answer against bandwidth",
        x=Axis("bandwidth, Gbit/s", log=True),
        y=Axis("seconds an item", log=True),
        panels=(PlotPanel(dataset, series),),
        caption="Measured parts of each arm, and its measured bytes over a link of this bandwidth; the round trip as "
        "declared. Caches are those on the frontier.",
    )


def _crossings(dataset: str, caches: Sequence[MessageTime], texts: Sequence[MessageTime]) -> Table:
    pairs = [(cache, text) for text in texts for cache in caches]
    return Table(
        title=f"Crossing: {dataset}",
        columns=("cache", "text", "crossing, Gbit/s", "the faster one"),
        rows=tuple((c.result.arm, t.result.arm, crossing(c, t), _faster(c, t)) for c, t in pairs),
        cells=tuple((*c.result.cells, *t.result.cells) for c, t in pairs),
    )


def _faster(cache: MessageTime, text: MessageTime) -> str:
    at = crossing(cache, text)
    if at is None:
        return f"{min(cache, text, key=lambda time: time.seconds(1.0)).result.arm}, at any bandwidth"
    above = min(cache, text, key=lambda time: time.seconds(10 * at))
    below = text if above is cache else cache
    return f"{below.result.arm} below, {above.result.arm} above"
