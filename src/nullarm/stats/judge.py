"""Scores in, judgement out: the functions that protocols and commands call.

A protocol with several declared contrasts judges each one and passes the list through `apply_holm`; nothing is drawn
again, because each judgement carries its evidence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from nullarm.stats.bootstrap import IntervalMethod
from nullarm.stats.decide import decide
from nullarm.stats.design import TestName
from nullarm.stats.evidence import (
    Rule,
    difference_evidence,
    equivalence_evidence,
    non_inferiority_evidence,
    summary_evidence,
    superiority_evidence,
)
from nullarm.stats.families import holm
from nullarm.stats.forecast import forecast
from nullarm.stats.paired import Summary
from nullarm.stats.pairing import Problem, ProblemKind
from nullarm.stats.verdict import Evidence, Judgement, PValues, Unit, Verdict


def judge_superiority(
    name: str,
    treated: npt.ArrayLike,
    controls: npt.ArrayLike,
    *,
    alpha: float,
    margin: float,
    test: TestName,
    rng: np.random.Generator,
    clusters: npt.ArrayLike | None = None,
    resamples: int = 4_000,
    draws: int = 9_999,
    interval: IntervalMethod = "percentile",
    unit: Unit = "seeds",
) -> Judgement:
    """Is the treated arm better than its controls, by at least `margin`?

    Args:
        name: The contrast.
        treated: [seeds, items] scores, higher is better.
        controls: [seeds, K, items] scores of the K controls of each seed; [seeds, items] is K = 1.
        alpha: Level of the one-sided claim.
        margin: δ ≥ 0 in the unit of the score; with 0 nothing can be EQUIVALENT.
        test: The test that carries the level.
        rng: Source of every draw.
        clusters: [items] cluster of each item; None when items are independent.
        resamples: Draws of the bootstrap.
        draws: Random arrangements, where they are too many to enumerate.
        interval: How the bootstrap interval is read.
        unit: What the rows are; for items as units see `nullarm.stats.evidence.by_item`.

    Raises:
        InvalidResult: Arrays of the wrong shape. Broken scores are a verdict, not an error.
        UsageError: A level, margin, number of draws or test that does not exist.
    """
    rule = Rule(alpha, margin, resamples, draws, interval, unit)
    evidence = superiority_evidence(name, treated, controls, rule, test=test, rng=rng, clusters=clusters)
    return decide(forecast(evidence, rng=rng))


def judge_equivalence(
    name: str,
    treated: npt.ArrayLike,
    reference: npt.ArrayLike,
    *,
    alpha: float,
    margin: float,
    rng: np.random.Generator,
    clusters: npt.ArrayLike | None = None,
    resamples: int = 4_000,
    interval: IntervalMethod = "percentile",
    unit: Unit = "seeds",
) -> Judgement:
    """Do treated and reference differ by less than `margin`? TOST over seeds.

    Args and errors as in `judge_superiority`; `reference` is [seeds, items] or [seeds, K, items], `margin` above 0.
    """
    rule = Rule(alpha, margin, resamples, interval=interval, unit=unit)
    return decide(forecast(equivalence_evidence(name, treated, reference, rule, rng=rng, clusters=clusters), rng=rng))


def judge_non_inferiority(
    name: str,
    treated: npt.ArrayLike,
    reference: npt.ArrayLike,
    *,
    alpha: float,
    margin: float,
    rng: np.random.Generator,
    clusters: npt.ArrayLike | None = None,
    resamples: int = 4_000,
    interval: IntervalMethod = "percentile",
    unit: Unit = "seeds",
) -> Judgement:
    """Is treated − reference above −`margin`? CONFIRMED says yes, HARMFUL says that it is below.

    Args and errors as in `judge_equivalence`.
    """
    rule = Rule(alpha, margin, resamples, interval=interval, unit=unit)
    evidence = non_inferiority_evidence(name, treated, reference, rule, rng=rng, clusters=clusters)
    return decide(forecast(evidence, rng=rng))


def judge_difference(
    name: str,
    treated: npt.ArrayLike,
    reference: npt.ArrayLike,
    *,
    alpha: float,
    margin: float,
    rng: np.random.Generator,
    clusters: npt.ArrayLike | None = None,
    resamples: int = 4_000,
    interval: IntervalMethod = "percentile",
    unit: Unit = "seeds",
) -> Judgement:
    """Do treated and reference differ, in whichever direction? A two-sided t-test over the units at `alpha`.

    EQUIVALENT says that they differ by less than `margin`, however surely; DIFFERENT that they differ, where that
    is not so; INCONCLUSIVE that neither is shown. For items as units see `nullarm.stats.evidence.by_item`, for blocks
    of a timing session `nullarm.stats.throughput.block_scores`.

    Args and errors as in `judge_equivalence`; with a `margin` of 0 nothing can be EQUIVALENT.
    """
    rule = Rule(alpha, margin, resamples, interval=interval, unit=unit)
    return decide(forecast(difference_evidence(name, treated, reference, rule, rng=rng, clusters=clusters), rng=rng))


def judge_from_summary(
    name: str,
    treated: Summary,
    control: Summary,
    *,
    alpha: float,
    margin: float,
    rng: np.random.Generator,
    question: Literal["superiority", "difference"] = "superiority",
    unit: Unit = "seeds",
) -> Judgement:
    """What two means ± standard deviations (ddof = 1) of unpaired runs allow one to say, by Welch's two-sided test.

    Args:
        name: The contrast.
        treated: Mean, standard deviation and number of runs.
        control: The same of the control.
        alpha: Level of the two-sided test.
        margin: δ ≥ 0 in the unit of the means.
        rng: Source of the forecast.
        question: Whether treated is better (or worse), or whether the two differ.
        unit: What was run.

    Raises:
        InvalidResult: A standard deviation that is negative or not finite.
        UsageError: A level or margin that does not exist.
    """
    evidence = summary_evidence(name, treated, control, Rule(alpha, margin, unit=unit), question)
    return decide(forecast(evidence, rng=rng))


def judge_problem(name: str, problem: Problem, *, alpha: float, margin: float) -> Judgement:
    """The judgement of scores that could not be paired: INSUFFICIENT_DATA for an empty arm, INVALID otherwise."""
    empty = problem.kind is ProblemKind.EMPTY_ARM
    return withhold(
        name, Verdict.INSUFFICIENT_DATA if empty else Verdict.INVALID, problem.message, alpha=alpha, margin=margin
    )


def withhold(name: str, verdict: Verdict, reason: str, *, alpha: float, margin: float) -> Judgement:
    """A judgement for which no scores were read: a failed control, a contaminated or incomplete matrix.

    Args:
        name: The contrast.
        verdict: INVALID, INSUFFICIENT_DATA or NO_OP.
        reason: Why, in one sentence.
        alpha: Level that was declared.
        margin: Margin that was declared.
    """
    return decide(Evidence(name, "superiority", "none", alpha, margin, obstacle=verdict, obstacle_reason=reason))


def apply_holm(judgements: Sequence[Judgement]) -> tuple[Judgement, ...]:
    """Decide a declared family again, with p-values adjusted by Holm.

    Each kind of claim (better, worse, equivalent, different) is its own family, so the chance of any false claim of one
    kind is at most α. A contrast that could not be tested stays in the family with p = 1: declaring it was a look.

    Args:
        judgements: All judgements of the family, in any order.

    Returns:
        The judgements in the same order; those without evidence to decide upon are unchanged.
    """
    evidence = [judgement.evidence for judgement in judgements]
    tails = [
        _adjusted([None if e is None else getattr(e.p, tail) for e in evidence])
        for tail in ("superior", "harmful", "equivalent", "different")
    ]
    return tuple(
        judgement if e is None or e.obstacle is not None else decide(e, PValues(*values))
        for judgement, e, values in zip(judgements, evidence, zip(*tails, strict=True), strict=True)
    )


def _adjusted(p_values: Sequence[float | None]) -> list[float | None]:
    holms = holm([1.0 if p is None else p for p in p_values]).tolist()
    return [None if p is None else adjusted for p, adjusted in zip(p_values, holms, strict=True)]
