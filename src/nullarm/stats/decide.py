"""The decision: from evidence to a verdict, a pure function.

| question | order in which the verdicts are tried |
|---|---|
| superiority | CONFIRMED or DETECTED_BELOW_MARGIN, HARMFUL, EQUIVALENT, INCONCLUSIVE |
| equivalence | EQUIVALENT, then as superiority |
| non-inferiority | CONFIRMED (above −margin), HARMFUL (below −margin), INCONCLUSIVE |
| difference | EQUIVALENT, DIFFERENT, INCONCLUSIVE |

A claim needs its p-value below α *and* the interval on the claimed side. The p-value carries the level, so the rate of
each false claim is at most α; the interval adds what the p-value does not know, the sampling of items. DIFFERENT rests
on a two-sided p and the interval at 1 − α, EQUIVALENT on TOST's p and the interval at 1 − 2α, which is TOST's own: with
the wider one it would be claimed at α/2. A difference that is certain but inside ±margin is EQUIVALENT.
"""

from __future__ import annotations

from nullarm.stats.reasons import reason
from nullarm.stats.verdict import Evidence, Interval, Judgement, PValues, Verdict

_ROUNDING = 1e-12


def decide(evidence: Evidence, adjusted: PValues | None = None) -> Judgement:
    """The judgement that the evidence allows.

    Args:
        evidence: What the scores say.
        adjusted: p-values adjusted for a family; the evidence's own ones decide when None.
    """
    p = evidence.p if adjusted is None else adjusted
    verdict = _verdict(evidence, p) if evidence.obstacle is None else evidence.obstacle
    return Judgement(
        name=evidence.name,
        verdict=verdict,
        estimate=evidence.estimate,
        interval=evidence.interval_behind(verdict),
        p=evidence.p.of(evidence.question),
        p_adjusted=None if adjusted is None else adjusted.of(evidence.question),
        p_equivalence=evidence.p.equivalent,
        n_seeds=evidence.n_seeds,
        n_items=evidence.n_items,
        alpha=evidence.alpha,
        margin=evidence.margin,
        mde=evidence.mde,
        n_needed=evidence.n_needed,
        test=evidence.test,
        reason=reason(evidence, verdict, p, adjusted is not None),
        p_harm=evidence.p.harmful,
        unit=evidence.unit,
        evidence=evidence,
    )


def _verdict(evidence: Evidence, p: PValues) -> Verdict:
    estimate, interval = evidence.estimate, evidence.interval
    if estimate is None or interval is None:
        return Verdict.INSUFFICIENT_DATA
    equivalent = _equivalent(evidence, interval, p)
    if evidence.question in ("equivalence", "difference") and equivalent:
        return Verdict.EQUIVALENT
    if evidence.question == "difference":
        different = _claimed(p.different, evidence.alpha) and interval.excludes_zero
        return Verdict.DIFFERENT if different else Verdict.INCONCLUSIVE
    line = -evidence.margin if evidence.question == "non_inferiority" else 0.0
    if _claimed(p.superior, evidence.alpha) and interval.low > line:
        enough = evidence.question == "non_inferiority" or estimate >= evidence.margin - _ROUNDING
        return Verdict.CONFIRMED if enough else Verdict.DETECTED_BELOW_MARGIN
    if _claimed(p.harmful, evidence.alpha) and interval.high < line:
        return Verdict.HARMFUL
    return Verdict.EQUIVALENT if equivalent else Verdict.INCONCLUSIVE


def _equivalent(evidence: Evidence, interval: Interval, p: PValues) -> bool:
    inside = (evidence.equivalence_interval or interval).inside(evidence.margin)
    return _claimed(p.equivalent, evidence.alpha) and inside


def _claimed(p: float | None, alpha: float) -> bool:
    return p is not None and p < alpha
