"""Which arms are worth their bytes, and which their speed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from nullarm.protocols.low_rank.results import ArmResult, baseline_arm
from nullarm.report import Axis, Block, Plot, PlotPanel, Series, Table
from nullarm.report.numbers import show, show_percent
from nullarm.stats.pareto import pareto_frontier
from nullarm.store.study_store import StudyStore

FRONTIER = "frontier"
WIDE = 5.0
"""Ratio of the largest to the smallest from which on an axis is logarithmic."""
CAPTION = (
    "Perplexity per token: lower is better. The line is the Pareto frontier: arms that no other one beats in both. A "
    "control on it does as well as what it is a control for. Arms with the same weights are one point."
)


def pareto(store: StudyStore, results: Sequence[ArmResult]) -> Iterator[Block]:
    """Bytes against perplexity with the frontier as a table, and speed against perplexity."""
    found = [result for result in results if result.token_perplexity is not None]
    models = list({result.weights: result for result in reversed(found)}.values())[::-1]
    if len(models) < 2:
        return
    controls = {name for name, arm in store.lock.study.arms.items() if arm.role == "control"}
    best = _frontier(models, [float(result.slot_bytes) for result in models])
    yield _by_bytes(models, controls, best)
    yield _table(best)
    yield from _by_speed(store, found)


def _frontier(found: Sequence[ArmResult], costs: Sequence[float]) -> list[ArmResult]:
    """Those that no other one beats in both, by cost."""
    scores = [-float(result.token_perplexity or 0) for result in found]
    member = pareto_frontier(costs, scores)
    pairs = [(cost, result) for cost, result, on in zip(costs, found, member, strict=True) if on]
    return [result for _, result in sorted(pairs, key=lambda pair: pair[0])]


def _by_bytes(found: Sequence[ArmResult], controls: set[str], best: Sequence[ArmResult]) -> Plot:
    groups = {
        "controls": [result for result in found if result.arm in controls],
        "reference and treated arms": [result for result in found if result.arm not in controls],
    }
    line = Series(name=FRONTIER, x=[r.slot_bytes for r in best], y=[r.token_perplexity for r in best],
                  hover=[r.name for r in best], cells=tuple(r.cells for r in best), style="step")  # fmt: skip
    series = tuple(_points(name, group) for name, group in groups.items() if group)
    return Plot(
        title="Bytes against perplexity",
        x=Axis("bytes in slots"),
        y=_axis(found),
        panels=(PlotPanel("", (line, *series)),),
        caption=CAPTION,
    )


def _axis(found: Sequence[ArmResult]) -> Axis:
    """Logarithmic where values lie far apart."""
    values = [result.token_perplexity for result in found if result.token_perplexity is not None]
    return Axis("perplexity", log=max(values) > WIDE * min(values))


def _points(name: str, group: Sequence[ArmResult]) -> Series:
    ends = [r.perplexity_interval for r in group]
    return Series(
        name=name,
        x=[r.slot_bytes for r in group],
        y=[r.token_perplexity for r in group],
        y_interval=[None if one is None else (one.low, one.high) for one in ends],
        hover=[
            f"{r.name}{'' if r.kept is None else f', {show_percent(round(r.kept, 3))} of the baseline'}" for r in group
        ],
        cells=tuple(r.cells for r in group),
        style="points",
    )


def _table(best: Sequence[ArmResult]) -> Table:
    return Table(
        title="Frontier of bytes and perplexity",
        columns=("arm", "bytes in slots", "share", "perplexity"),
        rows=tuple((r.name, r.slot_bytes, r.kept, r.token_perplexity) for r in best),
        cells=tuple(r.cells for r in best),
    )


def _by_speed(store: StudyStore, found: Sequence[ArmResult]) -> Iterator[Plot]:
    """The arms that were timed against the baseline in a session that gave a ratio, and the baseline itself."""
    name = baseline_arm(store)
    ratios = [(result, ratio) for result in found if (ratio := _ratio(result, name)) is not None]
    if not any(result.arm != name for result, _ in ratios):
        return
    best = _frontier([result for result, _ in ratios], [-ratio for _, ratio in ratios])
    at = {id(result): ratio for result, ratio in ratios}
    points = Series(
        name="arms",
        x=[ratio for _, ratio in ratios],
        y=[result.token_perplexity for result, _ in ratios],
        hover=[_told(result) for result, _ in ratios],
        cells=tuple((*r.cells, *([r.speed.cell.id] if r.speed else [])) for r, _ in ratios),
        style="points",
    )
    line = Series(name=FRONTIER, x=[at[id(r)] for r in best], y=[r.token_perplexity for r in best])
    yield Plot(
        title="Speed against perplexity",
        x=Axis("tokens a second, relative to the baseline"),
        y=_axis([result for result, _ in ratios]),
        panels=(PlotPanel("", (line, points)),),
        caption="To the right is faster. Contaminated sessions have no point. The baseline is at 1.",
    )


def _ratio(result: ArmResult, baseline: str | None) -> float | None:
    if result.arm == baseline:
        return 1.0
    against = result.speed.contrast.control if result.speed else None
    return result.speed.ratio if result.speed and against == baseline else None


def _told(result: ArmResult) -> str:
    ends = result.speed.ratio_interval if result.speed else None
    return result.name + (f", ratio {show(ends.low)} to {show(ends.high)}" if ends else "")
