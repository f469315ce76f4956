"""What timings allow one to say: the verdict on the contrast, and whether the session behind it may be believed.

| what happened | session | verdict |
|---|---|---|
| blocks stayed contaminated, more than a few | CONTAMINATED | INVALID |
| the control differs from itself (A/A, α = 0.01) | CONTAMINATED | INVALID |
| only speeds are known, and one arm's spread too much for chance | CONTAMINATED | INVALID |
| a session's arms spread unequally, by weather that looked clean | SUSPECT | as the numbers say |
| blind: no slowdown was injected, or it was not found | SUSPECT | as the numbers say, but INVALID for EQUIVALENT |
| there was no A/A, or too few of its blocks are left to judge it | SUSPECT | as the numbers say |
| many runs are suspect, by their weather or a warm-up that never got flat | SUSPECT | as the numbers say |

INVALID keeps its numbers, and none of them is a null. A blind session may still show a difference, never its absence.
That the arms differ is never a reason against a session: A/A, weather and the positive control do not look at the
treatment, and spread is compared after each arm's own speed is taken out.

A bare CSV has no controls either. It is the source's form, judged as the source did with better tests: its EQUIVALENT
says what those numbers show if they are believed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nullarm.bench import contamination
from nullarm.bench.blocks import judged
from nullarm.bench.contamination import Judged, together
from nullarm.bench.difference import SpeedDifference, nothing_left, nothing_to_time, over_blocks, over_runs
from nullarm.bench.runs import Arm, Phase, Run, State
from nullarm.bench.settings import BenchSettings
from nullarm.bench.spread import SpreadRule, assess
from nullarm.stats.contamination import Spread, compare_spread
from nullarm.stats.throughput import Drift, drift
from nullarm.stats.verdict import Interval, Verdict

AGAIN_ALPHA = 0.01
"""Level at which the control may not differ from itself: so many clean sessions are lost."""


@dataclass(frozen=True)
class SessionJudgement:
    """What a session of timings allows one to say.

    Attributes:
        verdict: Of the contrast; INVALID where the session cannot carry it.
        session: Whether the timings may be believed.
        reasons: Why, for people; the first is the verdict's.
        contrast: Treatment against control. Its own verdict is what the numbers say if they are believed.
        spread: Of the runs of both arms; None when an arm has fewer than 2.
        again: The control against itself, None when that was not run.
        slowed: The control slowed down against the control, None when that was not run.
        drift: The contrast with time held fixed; None when times are not known.
    """

    verdict: Verdict
    session: State
    reasons: tuple[str, ...]
    contrast: SpeedDifference
    spread: Spread | None = None
    again: SpeedDifference | None = None
    slowed: SpeedDifference | None = None
    drift: Drift | None = None

    @property
    def blind(self) -> bool:
        """Whether no injected slowdown was found, because there was none or because it was missed.

        A blind session shows no null. Timings whose session is not known (`judge_runs`) are always blind.
        """
        return not _found(self.slowed)

    @property
    def estimate(self) -> float | None:
        """Relative difference, treated / control − 1."""
        return self.contrast.estimate

    @property
    def ci(self) -> Interval | None:
        """Interval of the estimate at 1 − 2α."""
        return self.contrast.ci

    @property
    def p(self) -> float | None:
        """Two-sided p-value of the contrast."""
        return self.contrast.judgement.p

    def to_json(self) -> dict[str, object]:
        """Plain numbers, strings, lists and None, ready for `json.dumps(..., allow_nan=False)`."""
        return {
            **self.contrast.to_json(),
            "verdict": self.verdict.value,
            "session": self.session.value,
            "reasons": list(self.reasons),
            "spread": None if self.spread is None else self.spread.to_json(),
            "again": None if self.again is None else self.again.to_json(),
            "slowed": None if self.slowed is None else self.slowed.to_json(),
            "drift": None if self.drift is None else self.drift.to_json(),
        }


def judge_runs(
    treated: npt.ArrayLike,
    control: npt.ArrayLike,
    *,
    margin: float,
    alpha: float = 0.05,
    rule: SpreadRule = "ours",
    name: str = "treatment against control",
) -> SessionJudgement:
    """Two unpaired samples of speeds, of which nothing else is known: Welch's test and Welch's TOST.

    Args:
        treated: [n ≥ 2] tok/s.
        control: [m ≥ 2] tok/s.
        margin: δ ≥ 0 as a share of the control's mean; with 0 nothing can be EQUIVALENT.
        alpha: Level of both tests.
        rule: How spread decides on contamination.
        name: The contrast.

    Raises:
        InvalidResult: An arm with fewer than 2 runs, or a speed that is not a finite number above 0.
        UsageError: A level or margin that does not exist.
    """
    spread = compare_spread(treated, control)
    contrast = over_runs(name, treated, control, alpha=alpha, margin=margin)
    return SessionJudgement(*_conclusion(contrast, [assess(spread, rule)]), contrast, spread)


def judge_session(
    runs: Sequence[Run],
    *,
    margin: float,
    alpha: float = 0.05,
    settings: BenchSettings | None = None,
    seed: int = 0,
) -> SessionJudgement:
    """A session of `nullarm.bench.session`: paired by block, of each block the last attempt, where not contaminated.

    Args:
        runs: The run table.
        margin: δ ≥ 0 on the log ratio: 0.005 is half a per cent; with 0 nothing can be EQUIVALENT.
        alpha: Level of the tests, except that of A/A.
        settings: What the session was told to do; the defaults when None. Runs of `blocked` are judged unpaired.
        seed: Of the bootstrap.

    Raises:
        InvalidResult: Blocks with different numbers of runs.
        UsageError: A level or margin that does not exist.
    """
    told = settings or BenchSettings()
    rng = np.random.default_rng(seed)
    believed = judged(runs)
    phases = {run.phase for run in runs}
    contrast = _phase(believed, "contrast", alpha, margin, rng, paired=told.procedure != "blocked")
    again = _phase(believed, "again", AGAIN_ALPHA, margin, rng) if "again" in phases else None
    slowed = _phase(believed, "slowed", alpha, 0.0, rng) if "slowed" in phases else None
    treated, control = (_speeds(believed, "contrast", arm) for arm in ("treatment", "control"))
    spread = compare_spread(treated, control) if min(len(treated), len(control)) >= 2 else None
    findings = [
        contamination.judge_runs(runs, told.thresholds),
        *_control_findings(again, slowed, told.slowdown),
        *([_suspicion(assess(spread, "ours"))] if spread else []),
    ]
    return SessionJudgement(
        *_conclusion(contrast, findings, _blindness(slowed)), contrast, spread, again, slowed, _drift(believed)
    )


def judge_same(*, margin: float, alpha: float = 0.05) -> SessionJudgement:
    """A session that was not held, because both arms are one."""
    contrast = nothing_to_time("contrast: treatment against control", alpha=alpha, margin=margin)
    return SessionJudgement(Verdict.NO_OP, State.CLEAN, (contrast.judgement.reason,), contrast)


def _conclusion(
    contrast: SpeedDifference, findings: Sequence[Judged], blindness: str | None = None
) -> tuple[Verdict, State, tuple[str, ...]]:
    """Verdict, session and reasons; `blindness` says why the session cannot show a null."""
    session = together(findings)
    verdict, why = contrast.judgement.verdict, contrast.judgement.reason
    if session.state is State.CONTAMINATED:
        verdict, why = Verdict.INVALID, "The session is contaminated: its numbers show neither a difference nor a null."
    elif blindness and verdict is Verdict.EQUIVALENT:
        verdict, why = Verdict.INVALID, f"The session {blindness}: it cannot show a null."
    return verdict, session.state, (why, *session.reasons)


def _control_findings(
    again: SpeedDifference | None, slowed: SpeedDifference | None, slowdown: float
) -> Iterator[Judged]:
    if again is None:
        yield Judged(State.SUSPECT, ("no A/A: the control was not run against itself",))
    elif again.judgement.p is None:
        yield Judged(State.SUSPECT, (f"A/A could not be judged: {again.judgement.reason}",))
    elif again.judgement.verdict is Verdict.DIFFERENT:
        yield Judged(State.CONTAMINATED, (f"A/A differs: the control against itself, {_shown(again)}",))
    if slowed is None:
        yield Judged(State.SUSPECT, ("no positive control: no slowdown was injected",))
    elif slowed.judgement.p is None:
        yield Judged(State.SUSPECT, (f"positive control could not be judged: {slowed.judgement.reason}",))
    elif not _found(slowed):
        missed = f"the injected slowdown of {slowdown:.1%} was not found: the session is too noisy"
        yield Judged(State.SUSPECT, (f"positive control missed: {missed}, {_shown(slowed)}",))


def _blindness(slowed: SpeedDifference | None) -> str | None:
    """Why a session cannot show a null; None when it found its slowdown."""
    if slowed is None:
        return "had no positive control"
    return None if _found(slowed) else "missed a slowdown that was there"


def _found(slowed: SpeedDifference | None) -> bool:
    """Whether the slowed control was found different, and slower."""
    return (
        slowed is not None
        and slowed.judgement.verdict is Verdict.DIFFERENT
        and slowed.estimate is not None
        and slowed.estimate < 0
    )


def _suspicion(spread: Judged) -> Judged:
    """Spread looks at the arms, so beside evidence that does not, it raises suspicion at most."""
    return Judged(State.SUSPECT, spread.reasons) if spread.state is State.CONTAMINATED else spread


def _shown(difference: SpeedDifference) -> str:
    if difference.estimate is None:
        return "without an estimate"
    p = difference.judgement.p
    return f"{difference.estimate:+.2%}" + ("" if p is None else f", p = {p:.2g}")


def _phase(
    runs: Sequence[Run], phase: Phase, alpha: float, margin: float, rng: np.random.Generator, *, paired: bool = True
) -> SpeedDifference:
    """Treatment against control within one phase; over its runs, unpaired, where they were not run in turn."""
    name = f"{phase}: treatment against control"
    if all(run.phase != phase for run in runs):
        return nothing_left(name, alpha=alpha, margin=margin)
    if not paired:
        speeds = (_speeds(runs, phase, arm) for arm in ("treatment", "control"))
        return over_runs(name, *speeds, alpha=alpha, margin=margin)
    blocks = [[r for r in runs if r.block == block] for block in sorted({r.block for r in runs if r.phase == phase})]
    treated, control = ([_speeds(block, phase, arm) for block in blocks] for arm in ("treatment", "control"))
    return over_blocks(name, treated, control, alpha=alpha, margin=margin, rng=rng)


def _speeds(runs: Sequence[Run], phase: Phase, arm: Arm) -> list[float]:
    return [run.tokens_per_s for run in runs if (run.phase, run.arm) == (phase, arm)]


def _drift(runs: Sequence[Run]) -> Drift | None:
    timed = [run for run in runs if run.phase == "contrast"]
    return drift(
        [run.tokens_per_s for run in timed],
        [run.arm == "treatment" for run in timed],
        [run.started_s for run in timed],
    )
