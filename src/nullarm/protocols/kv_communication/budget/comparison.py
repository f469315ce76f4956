"""Every arm against unquantised communication and against the receiver alone, item by item."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from nullarm.protocols.kv_communication.budget.arms import (
    ArmResult,
    ByItem,
    arm_results,
    receiver_only,
    scopes,
    unquantised,
)
from nullarm.protocols.kv_communication.budget.evaluations import Evaluation
from nullarm.stats.evidence import by_item
from nullarm.stats.families import holm
from nullarm.stats.judge import apply_holm, judge_equivalence, withhold
from nullarm.stats.paired import McNemar, mcnemar_exact
from nullarm.stats.verdict import Judgement, PValues, Verdict
from nullarm.study.spec import Analysis


@dataclass(frozen=True)
class Compared:
    """One arm against a reference, items (clusters of them) as units.

    Attributes:
        result: The arm.
        difference: Mean difference in accuracy over the units; None where the two cannot be paired.
        judgement: What the engine says: interval, one-sided and equivalence p, minimum detectable effect, verdict.
        mcnemar: Exact test on right and wrong items; None where an item was asked more than once.
        p: Two-sided, the one that Holm reads: McNemar's for independent items, else that of the t test over units.
        p_adjusted: After Holm over the arms of the comparison.
    """

    result: ArmResult
    difference: float | None
    judgement: Judgement
    mcnemar: McNemar | None
    p: float | None
    p_adjusted: float | None = None

    @property
    def ends(self) -> tuple[float, float] | None:
        """Ends of the difference's interval."""
        interval = self.judgement.interval
        return (interval.low, interval.high) if interval else None


@dataclass(frozen=True)
class Comparison:
    """All arms against one reference on one data set: the family that is adjusted together."""

    dataset: str
    reference: ArmResult
    rows: tuple[Compared, ...]

    @property
    def unit(self) -> str:
        """What was counted: items, or clusters of them."""
        return next((row.judgement.unit for row in self.rows), "items")

    def row(self, arm: str) -> Compared | None:
        """The row of one arm."""
        return next((row for row in self.rows if row.result.arm == arm), None)


def comparisons(found: Sequence[Evaluation], analysis: Analysis) -> list[Comparison]:
    """On each data set and on all together, first against unquantised communication, then against the receiver."""
    references = [arm for arm in (unquantised(found), receiver_only(found)) if arm is not None]
    return [
        compare_with(reference, results, analysis)
        for dataset in scopes(found)
        for results in [arm_results(found, dataset)]
        for reference in references
        if any(r.arm == reference for r in results)
    ]


def compare_with(reference: str, results: Sequence[ArmResult], analysis: Analysis) -> Comparison:
    """Every other arm of `results` against the one called `reference`."""
    control = next(r for r in results if r.arm == reference)
    rows = [compare(result, control, analysis) for result in results if result is not control]
    adjusted = holm([1.0 if row.p is None else row.p for row in rows]).tolist() if rows else []
    judged = apply_holm([row.judgement for row in rows])
    done = (
        replace(row, judgement=judgement, p_adjusted=None if row.p is None else p)
        for row, judgement, p in zip(rows, judged, adjusted, strict=True)
    )
    return Comparison(control.dataset, control, tuple(done))


def compare(treated: ArmResult, control: ArmResult, analysis: Analysis) -> Compared:
    """One arm against another; the engine's question is whether they differ by less than the margin."""
    name = f"{treated.arm} against {control.arm} on {control.dataset}"
    pair = _pair(treated, control)
    if isinstance(pair, str):
        judgement = withhold(name, Verdict.INVALID, pair, alpha=analysis.alpha, margin=analysis.margin)
        return Compared(treated, None, judgement, None, None)
    first, second = pair
    units = by_item(first.accuracy, second.accuracy[:, None], first.clusters)
    clustered = first.clusters is not None
    judgement = judge_equivalence(
        name, *units, alpha=analysis.alpha, margin=analysis.margin, resamples=analysis.resamples,
        unit="clusters" if clustered else "items", rng=np.random.default_rng([analysis.seed, *name.encode()]),
    )  # fmt: skip
    mcnemar = mcnemar_exact(first.accuracy[0], second.accuracy[0]) if len(first.accuracy) == 1 else None
    p = mcnemar.p if mcnemar and not clustered else _two_sided(judgement)
    return Compared(treated, float((units[0] - units[1][:, 0]).mean()), judgement, mcnemar, p)


def _pair(treated: ArmResult, control: ArmResult) -> tuple[ByItem, ByItem] | str:
    """Both arms on the same runs and items, or why they are not."""
    first, second = treated.by_item, control.by_item
    if first is None or second is None:
        return f"the runs of {(treated if first is None else control).arm} have different items"
    if treated.runs != control.runs:
        return f"the seeds differ: {treated.arm} ran at {_seeds(treated)}, {control.arm} at {_seeds(control)}"
    if not np.array_equal(first.items, second.items):
        return f"the items differ: {treated.arm} has {len(first.items)}, {control.arm} {len(second.items)}"
    return first, second


def _two_sided(judgement: Judgement) -> float | None:
    """Of the t test over units; 1 where nothing differs."""
    if judgement.verdict is Verdict.NO_OP:
        return 1.0
    one_sided = judgement.evidence.p if judgement.evidence else PValues()
    if one_sided.superior is None or one_sided.harmful is None:
        return None
    return min(1.0, 2 * min(one_sided.superior, one_sided.harmful))


def _seeds(result: ArmResult) -> str:
    return ", ".join(str(seed) for seed, _ in result.runs)
