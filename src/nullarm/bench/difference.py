"""Two arms' speeds compared, over unpaired runs or over blocks, as treated / control − 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import expm1

import numpy as np
import numpy.typing as npt

from nullarm.stats.judge import judge_difference, judge_from_summary, withhold
from nullarm.stats.paired import summarise
from nullarm.stats.throughput import as_ratio, as_speeds, block_scores
from nullarm.stats.verdict import Interval, Judgement, Verdict


@dataclass(frozen=True)
class SpeedDifference:
    """A judged difference of speeds.

    Attributes:
        judgement: What the engine said, on log ratios (blocks) or on shares of the control's mean (runs).
        estimate: treated / control − 1; None when there is none.
        ci: Its interval at 1 − 2α, the one that TOST goes with.
    """

    judgement: Judgement
    estimate: float | None
    ci: Interval | None

    def to_json(self) -> dict[str, object]:
        """Plain numbers, strings and None."""
        judged = self.judgement
        return {
            "verdict": judged.verdict.value,
            "estimate": self.estimate,
            "ci": None if self.ci is None else [self.ci.low, self.ci.high],
            "ci_level": None if self.ci is None else self.ci.level,
            "p": judged.p,
            "p_equivalence": judged.p_equivalence,
            "alpha": judged.alpha,
            "margin": judged.margin,
            "n": judged.n_seeds,
            "unit": judged.unit,
            "test": judged.test,
            "mde": judged.mde,
            "n_needed": judged.n_needed,
        }


def over_runs(
    name: str, treated: npt.ArrayLike, control: npt.ArrayLike, *, alpha: float, margin: float
) -> SpeedDifference:
    """Unpaired runs by Welch's test, two-sided, and Welch's TOST.

    Args:
        name: The contrast.
        treated: [n ≥ 1] tok/s.
        control: [m ≥ 1] tok/s.
        alpha: Level of both tests.
        margin: δ ≥ 0 as a share of the control's mean, which is taken as known.

    Raises:
        InvalidResult: An arm without runs, or a speed that is not a finite number above 0.
        UsageError: A level or margin that does not exist.
    """
    first, second = as_speeds(treated, "runs"), as_speeds(control, "runs")
    unit = summarise(second).mean
    judged = judge_from_summary(
        name, summarise(first / unit), summarise(second / unit), alpha=alpha, margin=margin, question="difference",
        unit="runs", rng=np.random.default_rng(0),  # not drawn from: two samples are forecast in closed form
    )  # fmt: skip
    return SpeedDifference(judged, judged.estimate, _tost_interval(judged))


def over_blocks(
    name: str,
    treated: Sequence[Sequence[float]],
    control: Sequence[Sequence[float]],
    *,
    alpha: float,
    margin: float,
    rng: np.random.Generator,
) -> SpeedDifference:
    """Blocks of runs of both arms by a t-test, two-sided, and TOST on the log ratios of the blocks.

    Args:
        name: The contrast.
        treated: [blocks ≥ 1][runs] tok/s.
        control: The same of the control.
        alpha: Level of both tests.
        margin: δ ≥ 0 on the log ratio.
        rng: Source of the bootstrap.

    Raises:
        InvalidResult: Blocks with different numbers of runs, or a speed that is not a finite number above 0.
        UsageError: A level or margin that does not exist.
    """
    scores = block_scores(treated), block_scores(control)
    judged = judge_difference(name, *scores, alpha=alpha, margin=margin, rng=rng, unit="blocks")
    interval = _tost_interval(judged)
    ratio = None if interval is None else as_ratio(interval)
    return SpeedDifference(
        judged,
        None if judged.estimate is None else expm1(judged.estimate),
        None if ratio is None else Interval(ratio.low - 1, ratio.high - 1, ratio.level, ratio.method),
    )


def nothing_left(name: str, *, alpha: float, margin: float) -> SpeedDifference:
    """The difference of arms of which no run may be believed."""
    judged = withhold(name, Verdict.INSUFFICIENT_DATA, "no block may be believed", alpha=alpha, margin=margin)
    return SpeedDifference(judged, None, None)


def nothing_to_time(name: str, *, alpha: float, margin: float) -> SpeedDifference:
    """The difference of two arms that are one: nothing is timed."""
    same = "both arms load the same weights and give the same logits"
    return SpeedDifference(withhold(name, Verdict.NO_OP, same, alpha=alpha, margin=margin), None, None)


def _tost_interval(judged: Judgement) -> Interval | None:
    return judged.evidence.equivalence_interval if judged.evidence else None
