"""Every arm against unquantised communication and against the receiver alone, item by item."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from nullarm.protocols.kv_communication.budget.arms import ArmResult, ByItem, arm_results, scopes
from nullarm.protocols.kv_communication.budget.evaluations import Evaluation
from nullarm.protocols.kv_communication.budget.references import receiver_only, unquantised
from nullarm.stats.evidence import by_item
from nullarm.stats.judge import apply_holm, judge_equivalence, withhold
from nullarm.stats.paired import mcnemar_exact
from nullarm.stats.verdict import Judgement, PValues, Verdict
from nullarm.study.spec import Analysis


@dataclass(frozen=True)
class Compared:
    """One arm against a reference, items (clusters of them) as units.

    Attributes:
        result: The arm.
        reference: What it is measured against.
        difference: Mean difference in accuracy over the units, which are of one weight whatever their size; None where
            the two cannot be paired.
        judgement: What the engine says: interval, one-sided and equivalence p, minimum detectable effect, verdict.
        p: Two-sided, unadjusted: McNemar's for independent items, else that of the t test over units.
    """

    result: ArmResult
    reference: ArmResult
    difference: float | None
    judgement: Judgement
    p: float | None = None

    @property
    def ends(self) -> tuple[float, float] | None:
        """Ends of the difference's interval."""
        interval = self.judgement.interval
        return (interval.low, interval.high) if interval else None

    @property
    def plain_difference(self) -> float:
        """Difference of the two accuracies, in which each item has one weight."""
        return self.result.accuracy - self.reference.accuracy


@dataclass(frozen=True)
class Comparison:
    """All arms against what they are measured against, on one data set: the family that is adjusted together.

    Attributes:
        dataset: The data set, or all of them.
        against: The reference in words: an arm's name where it is one for all rows.
        rows: One for each arm.
    """

    dataset: str
    against: str
    rows: tuple[Compared, ...]

    @property
    def references(self) -> list[str]:
        """Names of the arms that are measured against."""
        return list(dict.fromkeys(row.reference.arm for row in self.rows))

    @property
    def clustered(self) -> bool:
        """Whether clusters of items were counted, and not items."""
        return any(row.judgement.unit == "clusters" for row in self.rows)

    @property
    def cheapest_equivalent(self) -> Compared | None:
        """Of the caches that one would send and that are EQUIVALENT to the unquantised one, that of fewest bytes."""
        rows = [
            row
            for row in self.rows
            if row.judgement.verdict is Verdict.EQUIVALENT
            and row.reference.evaluations[0].fused
            and row.result.evaluations[0].fused
            and row.result.evaluations[0].is_option
        ]
        return min(rows, key=lambda row: row.result.wire_bytes, default=None)

    def row(self, arm: str) -> Compared | None:
        """The row of one arm."""
        return next((row for row in self.rows if row.result.arm == arm), None)


def comparisons(found: Sequence[Evaluation], analysis: Analysis, obstacle: str | None = None) -> list[Comparison]:
    """On each data set and on all together, first against unquantised communication, then against the receiver.

    Args:
        found: Usable evaluations.
        analysis: As declared.
        obstacle: Why no verdict may be given, where that is so.
    """
    families = (unquantised(found), "the unquantised cache"), (receiver_only(found), "the receiver alone")
    made = [
        compare_all(arm_results(found, dataset), references, words, analysis, obstacle)
        for dataset in scopes(found)
        for references, words in families
    ]
    return [comparison for comparison in made if comparison.rows]


def compare_all(
    results: Sequence[ArmResult], references: Mapping[str, str], words: str, analysis: Analysis, obstacle: str | None
) -> Comparison:
    """Every arm of `results` against its reference, where that is among them."""
    known = {result.arm: result for result in results}
    pairs = [(r, known[references[r.arm]]) for r in results if references.get(r.arm) in known]
    rows = [compare(treated, control, analysis, obstacle) for treated, control in pairs]
    judged = apply_holm([row.judgement for row in rows])
    done = tuple(replace(row, judgement=judgement) for row, judgement in zip(rows, judged, strict=True))
    names = {row.reference.arm for row in rows}
    return Comparison(results[0].dataset, names.pop() if len(names) == 1 else words, done)


def compare(treated: ArmResult, control: ArmResult, analysis: Analysis, obstacle: str | None = None) -> Compared:
    """One arm against another; the engine's question is whether they differ by less than the margin.

    Args:
        treated: The arm.
        control: What it is measured against.
        analysis: As declared; with `incomplete: drop_seed` only seeds count at which both ran.
        obstacle: Why no verdict may be given; the judgement is then withheld.
    """
    if analysis.incomplete == "drop_seed":
        both = set(treated.seeds) & set(control.seeds)
        treated, control = (result.at(both) if both else result for result in (treated, control))
    name = f"{treated.arm} against {control.arm} on {control.dataset}"
    pair = _pair(treated, control)
    if isinstance(pair, str) or obstacle is not None:
        reason = obstacle or str(pair)
        judgement = withhold(name, Verdict.INVALID, reason, alpha=analysis.alpha, margin=analysis.margin)
        return Compared(treated, control, None if isinstance(pair, str) else _differ(*pair), judgement)
    first, second = pair
    units = by_item(first.accuracy, second.accuracy[:, None], first.clusters)
    clustered = first.clusters is not None
    judgement = judge_equivalence(
        name, *units, alpha=analysis.alpha, margin=analysis.margin, resamples=analysis.resamples,
        unit="clusters" if clustered else "items", rng=np.random.default_rng([analysis.seed, *name.encode()]),
    )  # fmt: skip
    once = len(first.accuracy) == 1 and not clustered
    p = mcnemar_exact(first.accuracy[0], second.accuracy[0]).p if once else _two_sided(judgement)
    return Compared(treated, control, _differ(first, second), judgement, p)


def _differ(first: ByItem, second: ByItem) -> float:
    """Mean difference over the units."""
    treated, control = by_item(first.accuracy, second.accuracy[:, None], first.clusters)
    return float((treated - control[:, 0]).mean())


def _pair(treated: ArmResult, control: ArmResult) -> tuple[ByItem, ByItem] | str:
    """Both arms on the same seeds and items, or why they are not."""
    first, second = treated.by_item, control.by_item
    if first is None or second is None:
        return f"the seeds of {(treated if first is None else control).arm} have different items"
    if treated.seeds != control.seeds:
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
    return ", ".join(map(str, result.seeds))
