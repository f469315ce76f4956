"""From scores to `Evidence`: one contrast, everything the numbers say, nothing decided yet.

The seed is the unit of a test about a training recipe (items of one model are not independent trials of it); items
enter through the bootstrap interval. About two given models the item is the unit: `by_item` turns the scores round. The
checks run from the crudest fault to the finest, and the first one found is the obstacle that settles the verdict.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import sqrt
from typing import Literal

import numpy as np
import numpy.typing as npt

from nullarm.errors import InvalidResult, UsageError
from nullarm.stats.arrays import Floats, as_array
from nullarm.stats.bootstrap import Bootstrap, IntervalMethod, two_way_bootstrap
from nullarm.stats.design import TESTS, Design, TestName
from nullarm.stats.equivalence import tost
from nullarm.stats.noise import Noise, noise_of_contrast
from nullarm.stats.paired import Summary, TTest, paired_t, welch_from_summary
from nullarm.stats.randomisation import EXACT_LIMIT, arrangement_count, within_seed_randomisation
from nullarm.stats.verdict import Evidence, Interval, PValues, Question, Unit, Verdict


@dataclass(frozen=True)
class Rule:
    """What was declared before any cell ran.

    Attributes:
        alpha: Level of each claim, between 0 and 0.5.
        margin: δ ≥ 0 in the unit of the score; 0 declares none, so nothing can be EQUIVALENT.
        resamples: Draws of the bootstrap.
        draws: Random arrangements of the randomisation test, where they are too many to enumerate.
        interval: How the bootstrap interval is read.
        unit: What the rows of the score matrices are, for people.
    """

    alpha: float
    margin: float
    resamples: int = 4_000
    draws: int = 9_999
    interval: IntervalMethod = "percentile"
    unit: Unit = "seeds"

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 0.5:
            raise UsageError("α is not a level", value=self.alpha, valid="a number between 0 and 0.5")
        if not 0 <= self.margin < float("inf"):
            raise UsageError("the margin δ is negative or not finite", value=self.margin, valid="≥ 0")
        if min(self.resamples, self.draws) < 1:
            raise UsageError("the analysis draws nothing", value=(self.resamples, self.draws), valid="≥ 1")


def by_item(
    treated: npt.ArrayLike, controls: npt.ArrayLike, clusters: npt.ArrayLike | None = None
) -> tuple[Floats, Floats]:
    """Scores with the item as the unit: means over seeds and replicates, and over the items of a cluster.

    Args:
        treated: [seeds, items] scores.
        controls: [seeds, K, items] scores.
        clusters: [items] cluster of each item; None when items are independent.

    Returns:
        [units, 1] and [units, 1, 1], a unit being an item or a cluster.

    Raises:
        InvalidResult: Arrays of the wrong shape.
    """
    first, rest = _lined_up(treated, controls)
    codes = np.arange(first.shape[1]) if clusters is None else np.unique(clusters, return_inverse=True)[1]
    sizes = np.bincount(codes)
    ours = np.bincount(codes, weights=first.mean(axis=0)) / sizes
    theirs = np.bincount(codes, weights=rest.mean(axis=(0, 1))) / sizes
    return ours[:, None], theirs[:, None, None]


def superiority_evidence(
    name: str,
    treated: npt.ArrayLike,
    controls: npt.ArrayLike,
    rule: Rule,
    *,
    test: TestName,
    rng: np.random.Generator,
    clusters: npt.ArrayLike | None = None,
) -> Evidence:
    """Evidence on "treated is better than its controls".

    Args:
        name: The contrast.
        treated: [seeds, items] scores.
        controls: [seeds, K, items] scores, the same K for every seed; [seeds, items] is K = 1.
        rule: Level, margin, numbers of draws.
        test: The test that carries the level.
        rng: Source of arrangements and resamples.
        clusters: [items] cluster of each item; None when items are independent.

    Raises:
        InvalidResult: Arrays of the wrong shape.
        UsageError: An unknown test.
    """
    if test not in TESTS:
        raise UsageError("unknown test", value=test, valid=TESTS)
    return _evidence(name, "superiority", treated, controls, rule, test, rng, clusters)


def equivalence_evidence(
    name: str,
    treated: npt.ArrayLike,
    reference: npt.ArrayLike,
    rule: Rule,
    *,
    rng: np.random.Generator,
    clusters: npt.ArrayLike | None = None,
) -> Evidence:
    """Evidence on "treated and reference differ by less than the margin", by TOST over seeds.

    Args:
        name: The contrast.
        treated: [seeds, items] scores.
        reference: [seeds, items] or [seeds, K, items] scores.
        rule: Level, margin > 0, numbers of draws.
        rng: Source of resamples.
        clusters: [items] cluster of each item; None when items are independent.

    Raises:
        InvalidResult: Arrays of the wrong shape.
        UsageError: No margin.
    """
    _need_margin(rule)
    return _evidence(name, "equivalence", treated, reference, rule, "paired_t", rng, clusters)


def non_inferiority_evidence(
    name: str,
    treated: npt.ArrayLike,
    reference: npt.ArrayLike,
    rule: Rule,
    *,
    rng: np.random.Generator,
    clusters: npt.ArrayLike | None = None,
) -> Evidence:
    """Evidence on "treated − reference is above −margin", by a one-sided t-test over seeds.

    Args and errors as in `equivalence_evidence`.
    """
    _need_margin(rule)
    return _evidence(name, "non_inferiority", treated, reference, rule, "paired_t", rng, clusters)


def difference_evidence(
    name: str,
    treated: npt.ArrayLike,
    reference: npt.ArrayLike,
    rule: Rule,
    *,
    rng: np.random.Generator,
    clusters: npt.ArrayLike | None = None,
) -> Evidence:
    """Evidence on "treated and reference differ", in whichever direction, by a two-sided t-test over the units.

    Args and errors as in `equivalence_evidence`, but for the margin, which may be 0.
    """
    return _evidence(name, "difference", treated, reference, rule, "paired_t", rng, clusters)


def summary_evidence(
    name: str,
    treated: Summary,
    control: Summary,
    rule: Rule,
    question: Literal["superiority", "difference"] = "superiority",
) -> Evidence:
    """Evidence on two means of unpaired runs, by Welch's two-sided test; `resamples` and `draws` are not read.

    Raises:
        InvalidResult: A standard deviation that is negative or not finite.
    """
    blank = Evidence(name, question, "Welch t, two-sided", rule.alpha, rule.margin, unit=rule.unit)
    blank = replace(blank, n_seeds=min(treated.n, control.n))
    test = welch_from_summary(treated, control)
    if test is None:
        return _obstructed(blank, Verdict.INSUFFICIENT_DATA, "an arm has fewer than 2 runs, or neither has any spread")
    p, equivalent = test.p_two_sided, _tost_p(test, rule)
    return replace(
        blank,
        estimate=test.estimate,
        interval=test.interval(1 - rule.alpha),
        equivalence_interval=test.interval(1 - 2 * rule.alpha),
        p=PValues(equivalent=equivalent, different=p)
        if question == "difference"
        else PValues(superior=p, harmful=p, equivalent=equivalent),
        noise=Noise(sqrt((treated.sd**2 + control.sd**2) / 2)),
    )


def _evidence(
    name: str,
    question: Question,
    treated: npt.ArrayLike,
    controls: npt.ArrayLike,
    rule: Rule,
    test: TestName,
    rng: np.random.Generator,
    clusters: npt.ArrayLike | None,
) -> Evidence:
    first, rest = _lined_up(treated, controls)
    seeds, k, items = rest.shape
    design = Design(seeds, k, rule.alpha, test, rule.draws)
    blank = Evidence(
        name, question, _words(question, design, rule.unit), rule.alpha, rule.margin, unit=rule.unit, n_seeds=seeds,
        n_items=items if rule.unit == "seeds" else None, design=design,
    )  # fmt: skip
    obstacle = _obstacle(first, rest, design, rule.unit)
    if obstacle is not None:
        return _obstructed(blank, *obstacle)
    differences = first - rest.mean(axis=1)
    t = paired_t(differences.mean(axis=1))
    p = _p_values(question, first.mean(axis=1), rest.mean(axis=2), t, rule, test, rng)
    if p is None:
        reason = f"all {seeds} {rule.unit} differ by exactly the same amount, so a t-test has no spread to test against"
        return _obstructed(blank, Verdict.INSUFFICIENT_DATA, reason)
    bootstrap = two_way_bootstrap(differences, clusters=clusters, resamples=rule.resamples, rng=rng)
    two_sided = question == "difference"
    return replace(
        blank,
        estimate=bootstrap.estimate,
        interval=_interval(bootstrap, 1 - rule.alpha if two_sided else design.level, rule),
        equivalence_interval=_interval(bootstrap, design.level, rule) if two_sided else None,
        p=p,
        noise=noise_of_contrast(first.mean(axis=1), rest.mean(axis=2), item_effect_se=bootstrap.item_se),
    )


def _interval(bootstrap: Bootstrap, level: float, rule: Rule) -> Interval:
    interval = bootstrap.interval(level, rule.interval)
    return interval if rule.unit == "seeds" else replace(interval, method=f"bootstrap of {rule.unit}, {rule.interval}")


def _lined_up(treated: npt.ArrayLike, controls: npt.ArrayLike) -> tuple[Floats, Floats]:
    """[seeds, items] and [seeds, K, items]; controls [seeds, items] are K = 1."""
    first = as_array(treated, "seeds, items", "treated")
    rest = as_array(controls, "seeds, K, items", "controls (the same K for every seed)", leave_out="K")
    if (first.shape[0], first.shape[1]) != (rest.shape[0], rest.shape[2]):
        raise InvalidResult(
            "treated and controls do not line up",
            value=(first.shape, rest.shape),
            valid="[seeds, items] and [seeds, K, items]",
        )
    return first, rest


def _obstacle(treated: Floats, controls: Floats, design: Design, unit: Unit) -> tuple[Verdict, str] | None:
    seeds, k, items = controls.shape
    if controls.size == 0:
        return Verdict.INSUFFICIENT_DATA, f"there are {seeds} {unit}, {k} controls for each and {items} items"
    if not (np.isfinite(treated).all() and np.isfinite(controls).all()):
        return Verdict.INVALID, "some scores are NaN or infinite"
    if (treated[:, None, :] == controls).all():
        where = f"{seeds} {unit}" + (f" and {items} items" if unit == "seeds" else "")
        return Verdict.NO_OP, f"treated and control scores are identical on all {where}"
    if seeds < 2:
        return Verdict.INSUFFICIENT_DATA, f"there is 1 {unit[:-1]}, and a verdict over {unit} needs at least 2"
    fault = design.fault()
    return None if fault is None else (Verdict.INVALID, fault)


def _p_values(
    question: Question,
    treated: Floats,
    controls: Floats,
    t: TTest | None,
    rule: Rule,
    test: TestName,
    rng: np.random.Generator,
) -> PValues | None:
    """p-values of one question from [seeds] and [seeds, K] scores; None when its test is undefined."""
    equivalent = None if t is None else _tost_p(t, rule)
    if test == "within_seed_randomisation":
        shuffled = within_seed_randomisation(treated, controls, draws=rule.draws, rng=rng)
        return PValues(shuffled.p_greater, shuffled.p_less, equivalent)
    if t is None:
        return None
    if question == "non_inferiority":
        return PValues(t.p_above(-rule.margin), t.p_below(-rule.margin))
    if question == "difference":
        return PValues(equivalent=equivalent, different=t.p_two_sided)
    return PValues(t.p_above(0), t.p_below(0), equivalent)


def _tost_p(t: TTest, rule: Rule) -> float | None:
    return tost(t, rule.margin).p if rule.margin > 0 else None


def _words(question: Question, design: Design, unit: Unit) -> str:
    if design.test == "within_seed_randomisation":
        count = arrangement_count(design.seeds, design.controls)
        how = f"exact over {count} arrangements" if count <= EXACT_LIMIT else f"{design.draws} random arrangements"
        return f"within-seed randomisation, {how}, one-sided"
    kind = {"equivalence": "TOST, paired t", "non_inferiority": "non-inferiority, paired t"}
    sides = "two-sided" if question == "difference" else "one-sided"
    return f"{kind.get(question, 'paired t')} over {unit}, {sides}"


def _need_margin(rule: Rule) -> None:
    if rule.margin == 0:
        raise UsageError("equivalence and non-inferiority need a margin", value=rule.margin, valid="δ > 0")


def _obstructed(blank: Evidence, verdict: Verdict, reason: str) -> Evidence:
    return replace(blank, obstacle=verdict, obstacle_reason=reason)
