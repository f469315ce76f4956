"""What an unequal spread of two arms' runs says of their session, where nothing but the timings is known."""

from __future__ import annotations

from typing import Literal

from nullarm.bench.contamination import Judged
from nullarm.bench.runs import State
from nullarm.stats.contamination import Spread

SpreadRule = Literal["ours", "source"]

LARGE_RATIO = 6.0
"""Variance ratio up to which ours suspects nothing. With the source's 5, 5.2 % of clean sessions of 4 + 4 runs would be
suspected or worse; with 6, 4.5 % are (CONTAMINATED: 1.8 %), and 0.9 % of those of 10 + 10 runs."""
SUSPECT_P, CONTAMINATED_P = 0.05, 0.01
SOURCE_CLEAN, SOURCE_CONTAMINATED, SOURCE_SLOWEST = 1.5, 5.0, 38.0
"""The source's: variance ratios up to 1.5 are clean, above 5 contaminated; so is a mean below 38 tok/s, on its GPU."""


def assess(spread: Spread, rule: SpreadRule) -> Judged:
    """The state of a session by the spread of its two arms.

    Args:
        spread: Of the two arms.
        rule: `ours`: relative variance ratio above 6 with Brown–Forsythe's p below 0.01 (CONTAMINATED) or 0.05
            (SUSPECT). `source`: a variance ratio above 5 or a mean below 38 tok/s is CONTAMINATED, up to 1.5 CLEAN.
    """
    return _by_source(spread) if rule == "source" else _by_ours(spread)


def _by_ours(spread: Spread) -> Judged:
    if spread.p is None or spread.p >= SUSPECT_P or spread.relative_variance_ratio <= LARGE_RATIO:
        return Judged(State.CLEAN)
    state = State.CONTAMINATED if spread.p < CONTAMINATED_P else State.SUSPECT
    return Judged(state, (f"unequal spread: {_ratios(spread)}, Brown–Forsythe p = {spread.p:.2g}",))


def _by_source(spread: Spread) -> Judged:
    reasons = []
    if spread.variance_ratio > SOURCE_CONTAMINATED:
        reasons.append(f"unequal spread: {_ratios(spread)}, above {SOURCE_CONTAMINATED:g}")
    if spread.slowest_mean < SOURCE_SLOWEST:
        reasons.append(f"slow arm: a mean of {spread.slowest_mean:.4g} tok/s, below {SOURCE_SLOWEST:g}")
    if reasons:
        return Judged(State.CONTAMINATED, tuple(reasons))
    if spread.variance_ratio > SOURCE_CLEAN:
        return Judged(State.SUSPECT, (f"unequal spread: {_ratios(spread)}, above {SOURCE_CLEAN:g}",))
    return Judged(State.CLEAN)


def _ratios(spread: Spread) -> str:
    return f"variance ratio {spread.variance_ratio:.3g} ({spread.sd_ratio:.3g} as a ratio of standard deviations)"
