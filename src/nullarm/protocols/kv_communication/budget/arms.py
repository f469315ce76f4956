"""Arms over seeds: accuracy with its interval, and bytes; on one data set, or on all of them together."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from nullarm.protocols.kv_communication.budget.evaluations import Evaluation
from nullarm.stats.arrays import Floats
from nullarm.stats.bootstrap import two_way_bootstrap
from nullarm.stats.proportions import wilson
from nullarm.stats.verdict import Interval

POOLED = "all data sets"
LEVEL, RESAMPLES = 0.95, 4_000
ROUNDING = 1e-9


@dataclass(frozen=True)
class ByItem:
    """What an arm got on each item, the items sorted.

    Attributes:
        items: [items] ids.
        accuracy: [runs, items], a run being a seed.
        wire_bytes: [runs, items], messages and requests.
        clusters: [items], an item without one being its own; None when no item has one.
    """

    items: npt.NDArray[np.str_]
    accuracy: Floats
    wire_bytes: Floats
    clusters: npt.NDArray[np.str_] | None


@dataclass(frozen=True)
class ArmResult:
    """All evaluations of one arm on one data set, or on all of them."""

    dataset: str
    evaluations: tuple[Evaluation, ...]

    @property
    def arm(self) -> str:
        """Name of the channel."""
        return self.evaluations[0].arm

    @property
    def channel(self) -> Any:
        """The channel as plain data."""
        return self.evaluations[0].channel

    @property
    def cells(self) -> tuple[str, ...]:
        """Ids of the cells that this rests on."""
        return tuple(e.cell.id for e in self.evaluations)

    @cached_property
    def seeds(self) -> tuple[int, ...]:
        """Seeds at which the arm ran."""
        return tuple(sorted({e.cell.seed for e in self.evaluations}))

    def at(self, seeds: Collection[int]) -> ArmResult:
        """Its evaluations at these seeds alone."""
        return replace(self, evaluations=tuple(e for e in self.evaluations if e.cell.seed in seeds))

    @cached_property
    def by_item(self) -> ByItem | None:
        """Items line by line; None where not every run has the same ones."""
        runs = [_run([e for e in self.evaluations if e.cell.seed == seed]) for seed in self.seeds]
        if any(not np.array_equal(run.items, runs[0].items) for run in runs):
            return None
        accuracy, sent = (np.concatenate([getattr(r, name) for r in runs]) for name in ("accuracy", "wire_bytes"))
        return ByItem(runs[0].items, accuracy, sent, runs[0].clusters)

    @property
    def n(self) -> int:
        """Distinct items."""
        return len(np.unique(np.concatenate([e.items for e in self.evaluations])))

    @property
    def accuracy(self) -> float:
        """Share of right answers, over all items of all runs; an error counts as wrong."""
        return float(self._all("accuracy").mean())

    @cached_property
    def interval(self) -> Interval | None:
        """Wilson's where items are independent and ran once; else the bootstrap over seeds and items (clusters).

        Where all seeds and clusters are alike the bootstrap has nothing to vary, and says [1, 1] of three of them:
        there it is Wilson's on the number of clusters (items). It is cut to [0, 1], where an accuracy is.
        """
        found = self.by_item
        if found is None:
            return None
        if len(found.accuracy) > 1 or found.clusters is not None:
            rng = np.random.default_rng(0)
            drawn = two_way_bootstrap(found.accuracy, clusters=found.clusters, resamples=RESAMPLES, rng=rng)
            interval = drawn.interval(LEVEL)
            if interval.high - interval.low > ROUNDING:
                return replace(interval, low=max(0.0, interval.low), high=min(1.0, interval.high))
        units = len(found.items if found.clusters is None else np.unique(found.clusters))
        return wilson(round(float(found.accuracy.mean()) * units), units, level=LEVEL)

    @property
    def ends(self) -> tuple[float, float] | None:
        """Ends of the interval."""
        return (self.interval.low, self.interval.high) if self.interval else None

    @property
    def wire_bytes(self) -> float:
        """Mean bytes an item, measured on what crossed the wire."""
        return float(np.concatenate([e.wire_bytes for e in self.evaluations]).mean())

    @property
    def bytes_per_token(self) -> float:
        """Bytes sent for each token of the receiver's prompts."""
        return float(self.wire_bytes / self._all("input_tokens").mean())

    def mean_seconds(self, part: str) -> float:
        """Mean seconds an item of one part, data sets weighted by their items."""
        weights = [len(e.items) for e in self.evaluations]
        return float(np.average([e.seconds[part] for e in self.evaluations], weights=weights))

    def _all(self, column: str) -> Floats:
        return np.concatenate([e.numbers(column) for e in self.evaluations])


def arm_results(found: Sequence[Evaluation], dataset: str) -> list[ArmResult]:
    """Every arm on one data set, or with `POOLED` on all of them together, in plan order."""
    here = [e for e in found if dataset in (POOLED, e.dataset)]
    return [ArmResult(dataset, tuple(e for e in here if e.arm == arm)) for arm in dict.fromkeys(e.arm for e in here)]


def datasets(found: Iterable[Evaluation]) -> list[str]:
    """Names of the data sets, in plan order."""
    return list(dict.fromkeys(e.dataset for e in found))


def scopes(found: Sequence[Evaluation]) -> list[str]:
    """Each data set, and all of them together where there are several."""
    names = datasets(found)
    return [*names, *([POOLED] if len(names) > 1 else [])]


def _run(parts: Sequence[Evaluation]) -> ByItem:
    """One run; its data sets one after the other, then sorted by item."""
    items = np.concatenate([e.items for e in parts])
    order = np.argsort(items)
    clustered = any(e.clusters is not None for e in parts)
    clusters = np.concatenate([e.items if e.clusters is None else e.clusters for e in parts])[order]
    accuracy, sent = (
        np.concatenate(found)[order][None]
        for found in ([e.numbers("accuracy") for e in parts], [e.wire_bytes for e in parts])
    )
    return ByItem(items[order], accuracy, sent, clusters if clustered else None)
