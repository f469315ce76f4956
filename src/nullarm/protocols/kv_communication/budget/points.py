"""Arms as points of bytes against accuracy, and the frontier of those that no other one beats in both."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from nullarm.protocols.kv_communication.budget.arms import ArmResult
from nullarm.protocols.kv_communication.budget.evaluations import Evaluation, usable
from nullarm.stats.pareto import frontier_membership, pareto_frontier

RESAMPLES = 2_000


@dataclass(frozen=True)
class Point:
    """One arm of one study on one data set, over its seeds."""

    result: ArmResult
    on_frontier: bool = False
    """No other option costs at most as much and is at least as accurate."""
    membership: float | None = None
    """Share of item resamples in which it is on the frontier; None for what is no option, and what cannot be paired."""

    @property
    def kind(self) -> str:
        """What the arm sends: a cache, a control's cache, text, or nothing, and then who answers."""
        first = self.result.evaluations[0]
        if not first.fused:
            return "text" if first.sends else str(first.channel["via"])
        return "cache" if first.is_option else "control"


def curve_points(found: Iterable[Evaluation], seed: int = 0) -> list[Point]:
    """Every arm on every data set, with its place at the frontier; several studies are merged.

    Arms compete where they ask the same receiver the same items.

    Args:
        found: Evaluations; unusable ones are left out.
        seed: Of the resampling.
    """
    groups: dict[tuple[object, ...], list[Evaluation]] = {}
    for e in usable(found):
        groups.setdefault((e.dataset, e.root, e.arm), []).append(e)
    points = [Point(ArmResult(str(key[0]), tuple(group))) for key, group in groups.items()]
    rivals: dict[tuple[object, ...], list[int]] = {}
    for index, point in enumerate(points):
        if (key := _rivalry(point.result)) is not None:
            rivals.setdefault(key, []).append(index)
    for indices in rivals.values():
        placed = _placed([points[i].result for i in indices], np.random.default_rng(seed))
        for i, point in zip(indices, placed, strict=True):
            points[i] = point
    return points


def frontier(points: Iterable[Point]) -> list[Point]:
    """The points on the frontier, cheapest first."""
    return sorted((p for p in points if p.on_frontier), key=lambda p: p.result.wire_bytes)


def _rivalry(result: ArmResult) -> tuple[object, ...] | None:
    """What two arms have to share so that one may beat the other."""
    first, found = result.evaluations[0], result.by_item
    if found is None or not first.is_option:
        return None
    return result.dataset, first.cell.settings["receiver"], found.items.tobytes()


def _placed(results: Sequence[ArmResult], rng: np.random.Generator) -> Iterator[Point]:
    tables = [table for r in results if (table := r.by_item) is not None]
    costs = np.stack([table.wire_bytes.mean(axis=0) for table in tables])
    scores = np.stack([table.accuracy.mean(axis=0) for table in tables])
    on = pareto_frontier(costs.mean(axis=1), scores.mean(axis=1)).tolist()
    shares = frontier_membership(costs, scores, resamples=RESAMPLES, rng=rng, clusters=tables[0].clusters).tolist()
    yield from (Point(r, member, share) for r, member, share in zip(results, on, shares, strict=True))
