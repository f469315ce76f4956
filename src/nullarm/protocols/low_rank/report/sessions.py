"""The timing sessions: their traces, what they say, and whether they may be believed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import Literal

from nullarm.analysis import Analysis
from nullarm.bench.difference import SpeedDifference
from nullarm.bench.runs import Run, State
from nullarm.protocols.low_rank.sessions import TimingSession
from nullarm.report import Axis, Block, Note, Plot, PlotPanel, Series, Table, Value
from nullarm.report.numbers import show_percent

SENTINELS = {"sentinel: GEMM": ("gemm_before", "gemm_after"), "sentinel: copy": ("copy_before", "copy_after")}
MARKS = {State.SUSPECT: "suspect", State.CONTAMINATED: "contaminated"}

Subject = Callable[[Run], bool]
SUBJECTS: dict[str, Subject] = {
    "treatment": lambda run: (run.phase, run.arm) == ("contrast", "treatment"),
    "control": lambda run: run.arm == "control" or run.phase == "again",
    "slowed control": lambda run: (run.phase, run.arm) == ("slowed", "treatment"),
}
"""Who ran, by what the legend calls them. In A/A blocks both arms are the control."""


def sessions(held: Sequence[TimingSession], analysis: Analysis, obstacle: str | None) -> Iterator[Block]:
    """Tables over all sessions, then the trace of each.

    Args:
        held: Of `timing_sessions`.
        analysis: For the verdicts, which know of more than the session.
        obstacle: Why no verdict may be given, where that is so.
    """
    if not held:
        return
    if obstacle is not None:
        yield Note(f"No verdict on any contrast: {obstacle.rstrip('.')}.", "warning")
    verdicts = {finding.contrast.name: finding.judgement.verdict.value for finding in analysis.findings}
    yield _contrasts(held, verdicts)
    yield _controls(held)
    yield _weather(held)
    yield from _reasons(held)
    for session in held:
        yield _trace(session)


def _contrasts(held: Sequence[TimingSession], verdicts: dict[str, str]) -> Table:
    return Table(
        title="What the sessions say",
        columns=("contrast", "treatment", "control", "verdict", "session", "tok/s ratio", "low", "high", "p", "blocks"),
        rows=tuple(_contrast(session, verdicts) for session in held),
        cells=_cells(held),
        caption="Ratio: tokens a second, treatment over control, over the blocks that may be believed; its interval is "
        "the one that TOST goes with. A contaminated session shows neither a difference nor a null: its numbers are in "
        "`analysis.json` alone. NO_OP: both arms ran the same weights.",
    )


def _contrast(session: TimingSession, verdicts: dict[str, str]) -> tuple[Value, ...]:
    said, ends = session.judgement, session.ratio_interval
    low, high = (ends.low, ends.high) if ends else (None, None)
    return (
        session.name, session.contrast.treatment, session.contrast.control, verdicts.get(session.contrast.name),
        said.session.value, session.ratio, low, high, said.p if session.believed else None,
        said.contrast.judgement.n_seeds or 0,
    )  # fmt: skip


def _controls(held: Sequence[TimingSession]) -> Table:
    return Table(
        title="Whether the sessions would have seen a difference, and only one that is there",
        columns=("contrast", "A/A", "A/A p", "A/A verdict", "slowed", "slowed p", "slowed verdict"),
        rows=tuple((s.name, *_judged(s.judgement.again), *_judged(s.judgement.slowed)) for s in held),
        cells=_cells(held),
        caption="A/A: the control against itself; at α = 0.01, DIFFERENT spoils the session. Slowed: the control with "
        "an injected slowdown against the control; without DIFFERENT, and below 0, the session may not show a null. "
        "Both as treated over control − 1.",
    )


def _judged(difference: SpeedDifference | None) -> tuple[Value, Value, Value]:
    if difference is None:
        return (None, None, None)
    return (difference.estimate, difference.judgement.p, difference.judgement.verdict.value)


def _weather(held: Sequence[TimingSession]) -> Table:
    return Table(
        title="The weather of the sessions",
        columns=("contrast", "runs", *MARKS.values(), "foreign cores", "drift a minute", "drift p"),
        rows=tuple(map(_of_weather, held)),
        cells=_cells(held),
        caption="Runs, the rejected ones too. Foreign cores: median over runs of the cores that other processes took. "
        "Drift: change of log tokens a second, the arm held fixed, over the runs that may be believed.",
    )


def _of_weather(session: TimingSession) -> tuple[Value, ...]:
    runs = session.runs
    drift = session.judgement.drift.to_json() if session.judgement.drift else {}
    foreign = [run.foreign_cpus for run in runs if run.foreign_cpus is not None]
    return (
        session.name, len(runs), *(sum(run.state is state for run in runs) for state in MARKS),
        median(foreign) if foreign else None, drift.get("per_minute"), drift.get("p_drift"),
    )  # fmt: skip


def _reasons(held: Sequence[TimingSession]) -> Iterator[Table]:
    """What was found against sessions, after the verdict's own sentence, which is on its card."""
    pairs = [(session, reason) for session in held for reason in session.judgement.reasons[1:]]
    if pairs:
        yield Table(
            title="Why sessions are not clean",
            columns=("contrast", "session", "reason"),
            rows=tuple((session.name, session.judgement.session.value, reason) for session, reason in pairs),
            cells=tuple((session.cell.id,) for session, _ in pairs),
        )


def _trace(session: TimingSession) -> Plot:
    contrast, slowdown = session.contrast, session.cell.parameters["bench"]["slowdown"]
    speed = PlotPanel("tokens a second", tuple(_speeds(session)))
    return Plot(
        title=f"{session.name}: {contrast.treatment} against {contrast.control}, run by run",
        x=Axis("seconds from the session's start"),
        y=Axis("tokens a second"),
        panels=(speed, *(_sentinel(session, title, columns) for title, columns in SENTINELS.items())),
        caption="Suspect, contaminated: whoever ran, as each point says. Control: every run of it, those of A/A blocks "
        "too. Slowed control: with the injected slowdown of "
        f"{show_percent(slowdown)}. Blocks with a contaminated run were run again later, and enter nothing. Sentinels: "
        "fixed work, before and after each run.",
    )


def _speeds(session: TimingSession) -> Iterator[Series]:
    """Who ran, and apart from them the runs that are not to be believed; all names always, for their colours."""
    for name, is_subject in SUBJECTS.items():
        yield _series(name, [run for run in session.runs if is_subject(run) and run.state not in MARKS], session)
    for state, mark in MARKS.items():
        yield _series(mark, [run for run in session.runs if run.state is state], session)


def _series(name: str, runs: Sequence[Run], session: TimingSession) -> Series:
    return Series(
        name=name,
        x=[run.started_s for run in runs],
        y=[run.tokens_per_s for run in runs],
        hover=[_hover(run) for run in runs],
        cells=((session.cell.id,),),
        style="points",
    )


def _hover(run: Run) -> str:
    where = f"run {run.run}: {run.phase} block {run.block}, attempt {run.attempt}, {run.arm}"
    return "\n".join([where, *([run.reasons] if run.reasons else [])])


def _sentinel(session: TimingSession, title: str, columns: tuple[str, str]) -> PlotPanel:
    """Milliseconds, at each run's start and at its end, marked where the run is not to be believed."""
    line = _readings("sentinel", session.runs, session, columns, "line")
    marks = [
        _readings(mark, [run for run in session.runs if run.state is state], session, columns, "points")
        for state, mark in MARKS.items()
    ]
    return PlotPanel(title, (line, *marks), Axis("ms"))


def _readings(
    name: str, runs: Sequence[Run], session: TimingSession, columns: tuple[str, str], style: Literal["line", "points"]
) -> Series:
    return Series(
        name=name,
        x=[x for run in runs for x in (run.started_s, run.started_s + run.prefill_s + run.decode_s)],
        y=[_ms(getattr(run, column)) for run in runs for column in columns],
        cells=((session.cell.id,),),
        style=style,
    )


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else 1000 * seconds


def _cells(held: Sequence[TimingSession]) -> tuple[tuple[str, ...], ...]:
    return tuple((session.cell.id,) for session in held)
