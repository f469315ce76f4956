"""The source's tolerances, checked on what this study measured more than once under one treatment."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from nullarm.bench.runs import State
from nullarm.bench.spread import SOURCE_CLEAN, SOURCE_CONTAMINATED, assess
from nullarm.protocols.low_rank.results import ArmResult
from nullarm.protocols.low_rank.sessions import TimingSession

THROUGHPUT = 0.05
DECIMALS = 4

Measure = Literal["throughput", "perplexity", "variance ratio"]

ALLOWED: dict[Measure, str] = {
    "throughput": f"±{THROUGHPUT:.0%}",
    "perplexity": f"equal to {DECIMALS} decimals on one device",
    "variance ratio": f"up to {SOURCE_CLEAN:g} when clean, above {SOURCE_CONTAMINATED:g} contaminated",
}
"""What the source allows."""


@dataclass(frozen=True)
class Check:
    """One comparison of what should be the same.

    Attributes:
        measure: What was measured; what is allowed is in `ALLOWED`.
        compared: What was compared, in words.
        found: Treated over control − 1; the largest less the smallest; or the ratio. Infinite where one arm does not
            vary.
        kept: Whether that is inside the tolerance.
        cells: Ids of the cells that it rests on.
    """

    measure: Measure
    compared: str
    found: float
    kept: bool
    cells: tuple[str, ...]


def checks(results: Sequence[ArmResult], sessions: Sequence[TimingSession], rerun: str | None) -> list[Check]:
    """All that can be made; only of runs that may be believed.

    Args:
        results: Of `arm_results`.
        sessions: Of `timing_sessions`.
        rerun: The contrast of the null re-run, whose variance ratio the source looks at.
    """
    of_rerun = [session for session in sessions if session.contrast.name == rerun]
    return [*_again(sessions), *_controls(sessions), *_perplexities(results), *_spreads(of_rerun)]


def tolerance_lines(found: Sequence[Check]) -> list[str]:
    """One line a measure: how often it was kept, and what was furthest off."""
    return [_line(measure, [check for check in found if check.measure == measure]) for measure in ALLOWED]


def _line(measure: Measure, mine: Sequence[Check]) -> str:
    if not mine:
        return f"{measure}, {ALLOWED[measure]}: not checked, for nothing that may be believed was measured twice"
    worst = max(mine, key=lambda check: abs(check.found))
    broken = sum(not check.kept for check in mine)
    told = f"NOT KEPT in {broken} of {len(mine)} comparisons" if broken else f"kept in all of {len(mine)} comparisons"
    form = {"throughput": "+.2%", "perplexity": ".1g", "variance ratio": ".3g"}[measure]
    return f"{measure}, {ALLOWED[measure]}: {told}; furthest off: {worst.compared}, {worst.found:{form}}"


def _again(sessions: Sequence[TimingSession]) -> Iterator[Check]:
    """A/A."""
    for session in sessions:
        again = session.judgement.again
        if again is not None and again.estimate is not None:
            compared = f"{session.contrast.control} against itself in {session.name}"
            yield _speed(compared, again.estimate, (session.cell.id,))


def _controls(sessions: Sequence[TimingSession]) -> Iterator[Check]:
    """A control that stood in several sessions."""
    medians: dict[str, dict[str, float]] = {}
    for session in sessions:
        speed = session.medians["control_tokens_per_s"]
        if speed is not None and session.believed:
            medians.setdefault(session.contrast.control, {})[session.cell.id] = speed
    for control, found in medians.items():
        if len(found) > 1:
            apart = max(found.values()) / min(found.values()) - 1
            yield _speed(f"medians of {control} in {len(found)} sessions", apart, tuple(found))


def _speed(compared: str, found: float, cells: tuple[str, ...]) -> Check:
    return Check("throughput", compared, found, abs(found) <= THROUGHPUT, cells)


def _perplexities(results: Sequence[ArmResult]) -> Iterator[Check]:
    """Evaluations of one and the same model, each made in a cell of its own."""
    groups: dict[str, list[ArmResult]] = {}
    for result in results:
        groups.setdefault(result.weights, []).append(result)
    for same in groups.values():
        known = [result.token_perplexity for result in same if result.token_perplexity is not None]
        if len(known) > 1:
            compared = " and ".join(dict.fromkeys(result.name for result in same))
            kept = len({f"{value:.{DECIMALS}f}" for value in known}) == 1
            yield Check("perplexity", compared, max(known) - min(known), kept, tuple(result.cell for result in same))


def _spreads(sessions: Sequence[TimingSession]) -> Iterator[Check]:
    """Of both arms of the null re-run, by the source's rule."""
    for session in sessions:
        if spread := session.judgement.spread:
            theirs = assess(spread, "source").state
            compared = f"{session.name}: {theirs} by the source's rule, {session.judgement.session} by ours"
            yield Check("variance ratio", compared, spread.variance_ratio, theirs is State.CLEAN, (session.cell.id,))
