"""Arms over seeds: accuracy with its interval, and bytes; on one data set, or on all of them together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
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
RAW_BITS = {"float32": 32, "bfloat16": 16, "float16": 16}
LEVEL, RESAMPLES = 0.95, 4_000


@dataclass(frozen=True)
class ByItem:
    """What an arm got on each item, the items sorted.

    Attributes:
        items: [items] ids.
        accuracy: [runs, items], a run being a seed.
        wire_bytes: [runs, items], messages and requests.
        clusters: [items], or None when items are independent.
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
    def runs(self) -> tuple[tuple[int, int], ...]:
        """Seeds (and replicates) at which the arm ran."""
        return tuple(sorted({e.runs_key for e in self.evaluations}))

    @cached_property
    def by_item(self) -> ByItem | None:
        """Items line by line; None where not every run has the same ones."""
        runs = [_run([e for e in self.evaluations if e.runs_key == key]) for key in self.runs]
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
        """Wilson's where items are independent and ran once; else the bootstrap over seeds and items (clusters)."""
        found = self.by_item
        if found is None:
            return None
        if len(found.accuracy) == 1 and found.clusters is None:
            return wilson(round(found.accuracy.sum()), found.accuracy.size, level=LEVEL)
        bootstrap = two_way_bootstrap(
            found.accuracy, clusters=found.clusters, resamples=RESAMPLES, rng=np.random.default_rng(0)
        )
        return bootstrap.interval(LEVEL)

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


def unquantised(found: Iterable[Evaluation]) -> str | None:
    """The arm that every codec is measured against: the whole own cache in the widest raw numbers; None without one."""
    whole = [e for e in found if _is_whole(e)]
    return min(whole, key=_preference).arm if whole else None


def receiver_only(found: Iterable[Evaluation]) -> str | None:
    """The receiver alone."""
    return next((e.arm for e in found if e.channel["via"] == "receiver"), None)


def _is_whole(e: Evaluation) -> bool:
    c, codec = e.channel, e.cell.settings["codec"]
    own = e.fused and c["sharer_cache"] == "own" and c["proportion"] == 1 and c["allocation"] is None
    return bool(own and codec["kind"] == "raw")


def _preference(e: Evaluation) -> tuple[bool, bool, bool, int]:
    """One sharer, nothing legacy, the study's first fuser, and then wide numbers come first."""
    legacy = e.channel["alignment"] != "offsets" or e.channel["fusion"] != "whole"
    return (
        len(e.cell.settings["fusers"]) > 1,
        legacy,
        bool(e.channel["fusers"]),
        -RAW_BITS[e.cell.settings["codec"]["dtype"]],
    )


def _run(parts: Sequence[Evaluation]) -> ByItem:
    """One run; its data sets one after the other, then sorted by item."""
    items = np.concatenate([e.items for e in parts])
    order = np.argsort(items)
    labels = [e.clusters for e in parts if e.clusters is not None]
    clusters = np.concatenate(labels)[order] if len(labels) == len(parts) else None
    accuracy = np.concatenate([e.numbers("accuracy") for e in parts])[order]
    return ByItem(items[order], accuracy[None], np.concatenate([e.wire_bytes for e in parts])[order][None], clusters)
