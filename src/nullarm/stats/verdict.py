"""What a verdict is made of: the words, the interval, the evidence, the judgement.

`Evidence` is everything the numbers say, `Judgement` what one may say because of them. The step between the two is the
pure function `nullarm.stats.decide.decide`, so that a correction for a family can decide again without the scores.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from nullarm.stats.design import Design
from nullarm.stats.noise import Noise

Question = Literal["superiority", "non_inferiority", "equivalence", "difference"]
Unit = Literal["seeds", "items", "clusters", "blocks", "runs"]
"""What is drawn at random: training runs, prompts (clusters of them) put to given models, ABBA blocks of a timing
session (their score is log tok/s, so a difference is a log ratio), or timed runs that are not paired."""


class Verdict(StrEnum):
    """What one may say. The value is the word itself, for JSON."""

    CONFIRMED = "CONFIRMED"
    """Better, by at least the margin (for non-inferiority: not worse by the margin)."""
    DETECTED_BELOW_MARGIN = "DETECTED_BELOW_MARGIN"
    """Better, but by less than the margin that was declared to matter."""
    DIFFERENT = "DIFFERENT"
    """The arms differ, in whichever direction; the direction was not declared."""
    EQUIVALENT = "EQUIVALENT"
    """The difference lies inside ±margin: the only way to claim a null."""
    HARMFUL = "HARMFUL"
    """Significantly in the wrong direction."""
    INCONCLUSIVE = "INCONCLUSIVE"
    """Neither an effect nor its absence is shown."""
    NO_OP = "NO_OP"
    """Treated and control scores are identical: the treatment changed nothing."""
    INVALID = "INVALID"
    """The design cannot reach α, or the scores are broken, contaminated or incomplete."""
    INSUFFICIENT_DATA = "INSUFFICIENT_DATA"
    """Too few seeds, items or controls, or no variance to test against."""


@dataclass(frozen=True)
class Interval:
    """An interval for an effect, in the unit of the score.

    Attributes:
        low: Lower end.
        high: Upper end.
        level: Nominal two-sided coverage, such as 0.9.
        method: How it was made, in words.
    """

    low: float
    high: float
    level: float
    method: str

    def inside(self, margin: float) -> bool:
        """Whether the whole interval lies strictly inside ±`margin`."""
        return -margin < self.low and self.high < margin

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 lies outside, on either side."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class PValues:
    """One p-value per claim; None where that claim was not tested.

    Attributes:
        superior: Against "not better" (for non-inferiority: against "worse by the margin or more").
        harmful: Against "not worse" (for non-inferiority: against "not worse by the margin").
        equivalent: Against "different by the margin or more" (TOST).
        different: Against "no difference", in both directions.
    """

    superior: float | None = None
    harmful: float | None = None
    equivalent: float | None = None
    different: float | None = None

    def of(self, question: Question) -> float | None:
        """p-value of the claim that the question asks about."""
        asked = {"equivalence": self.equivalent, "difference": self.different}
        return asked.get(question, self.superior)


@dataclass(frozen=True)
class Evidence:
    """What the scores of one contrast say, before anyone decides.

    Attributes:
        name: The contrast.
        question: What was asked.
        test: The test behind `p`, in words.
        alpha: Level of each claim; of both sides together where the test has two.
        margin: δ in the unit of the score; 0 means that no margin was declared.
        unit: What the test counts.
        n_seeds: Units of the test (runs of the smaller arm, for summaries).
        n_items: Items behind each seed's score; None when only seed-level scores exist.
        estimate: Mean of treated − control.
        interval: Interval of the estimate, at level 1 − 2α (1 − α where the test has two sides).
        equivalence_interval: That at 1 − 2α, which TOST goes with, where `interval` is at 1 − α.
        p: Unadjusted p-values.
        design: The design as run, for the forecast.
        noise: The noise as seen, for the forecast.
        mde: True effect this design finds with 80 % power (see `forecast`).
        n_needed: Units that would settle the question (see `forecast`).
        obstacle: When set, the verdict whatever the numbers: NO_OP, INVALID or INSUFFICIENT_DATA.
        obstacle_reason: Why, in one sentence.
    """

    name: str
    question: Question
    test: str
    alpha: float
    margin: float
    unit: Unit = "seeds"
    n_seeds: int | None = None
    n_items: int | None = None
    estimate: float | None = None
    interval: Interval | None = None
    equivalence_interval: Interval | None = None
    p: PValues = PValues()
    design: Design | None = None
    noise: Noise | None = None
    mde: float | None = None
    n_needed: int | None = None
    obstacle: Verdict | None = None
    obstacle_reason: str = ""

    def interval_behind(self, verdict: Verdict) -> Interval | None:
        """The interval that a verdict rests on; each states its level."""
        at_its_own_level = self.equivalence_interval if verdict is Verdict.EQUIVALENT else None
        return at_its_own_level or self.interval


@dataclass(frozen=True)
class Judgement:
    """A verdict with everything it rests on. None means that there was no evidence, never 0, −1 or NaN.

    Attributes:
        name: The contrast.
        verdict: What one may say.
        estimate: Mean of treated − control, in the unit of the score.
        interval: Interval of the estimate that the verdict rests on: at 1 − 2α, except that a two-sided test has one at
            1 − α unless the verdict is EQUIVALENT.
        p: p-value of the claim that was asked: better, not worse by the margin, equivalent, or different. One-sided,
            except for differences and published summaries.
        p_adjusted: The same after Holm over the declared family; None when no family was applied.
        p_equivalence: p-value of the claim "inside ±margin" (TOST), unadjusted.
        n_seeds: Units of the test.
        n_items: Items behind each seed's score.
        alpha: Level of the claim.
        margin: δ, in the unit of the score.
        mde: Minimum detectable effect at 80 % power for this contrast alone, in the unit of the score.
        n_needed: Units that would settle the question at 80 % power; None when no number up to 1,000 would.
        test: The test behind `p`, in words.
        reason: Why this verdict, in one sentence with the numbers.
        p_harm: p-value of the claim "treated is worse", unadjusted.
        unit: What `n_seeds` and `n_needed` count.
        evidence: What was decided upon, for a later decision with adjusted p-values. Not part of the JSON.
    """

    name: str
    verdict: Verdict
    estimate: float | None
    interval: Interval | None
    p: float | None
    p_adjusted: float | None
    p_equivalence: float | None
    n_seeds: int | None
    n_items: int | None
    alpha: float
    margin: float
    mde: float | None
    n_needed: int | None
    test: str
    reason: str
    p_harm: float | None = None
    unit: Unit = "seeds"
    evidence: Evidence | None = field(default=None, repr=False, compare=False)

    def to_json(self) -> dict[str, object]:
        """Plain numbers, strings and None, ready for `json.dumps(..., allow_nan=False)`."""
        interval = self.interval
        return {
            "name": self.name,
            "verdict": self.verdict.value,
            "estimate": self.estimate,
            "interval": None
            if interval is None
            else {"low": interval.low, "high": interval.high, "level": interval.level, "method": interval.method},
            "p": self.p,
            "p_adjusted": self.p_adjusted,
            "p_harm": self.p_harm,
            "p_equivalence": self.p_equivalence,
            "unit": self.unit,
            "n_seeds": self.n_seeds,
            "n_items": self.n_items,
            "alpha": self.alpha,
            "margin": self.margin,
            "mde": self.mde,
            "n_needed": self.n_needed,
            "test": self.test,
            "reason": self.reason,
        }
