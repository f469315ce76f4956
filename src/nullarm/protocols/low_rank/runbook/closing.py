"""The closing block: arms, speculation, timing sessions, the null re-run, tolerances, verdicts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from textwrap import shorten

from nullarm.bench.difference import SpeedDifference
from nullarm.bench.runs import State
from nullarm.protocols.findings import verdict_line
from nullarm.protocols.low_rank.results import ArmResult, SpeculationResult
from nullarm.protocols.low_rank.runbook.contents import Contents
from nullarm.protocols.low_rank.sessions import TimingSession
from nullarm.protocols.low_rank.tables import EVALUATE, MEASURE, SPECTRA, SPECULATE, SWEEP
from nullarm.protocols.low_rank.tolerances import tolerance_lines
from nullarm.stats.verdict import Interval
from nullarm.study.plan import Cell

LONGEST_REASON = 200


def closing_block(contents: Contents) -> list[str]:
    """Its lines."""
    study = contents.study
    level = f"{100 * (1 - 2 * study.analysis.alpha):g} % interval"
    return [
        "LOW RANK" + (" (a smoke run: none of this is evidence)" if study.smoke else ""),
        *(["EXPLORATORY: the analysis was changed after cells had run"] if contents.analysis.exploratory else []),
        "",
        f"arms (bytes of the matrices in all layers, PPL and tok/s ratio with {level}, hash of the weights)",
        *(f"  {line}" for line in _aligned([_arm(contents, cell) for cell in contents.cells(EVALUATE)])),
        *_section("speculation", [_speculation(contents, cell) for cell in contents.cells(SPECULATE)]),
        *_section("timing sessions", [line for cell in contents.cells(MEASURE) for line in _session(contents, cell)]),
        "",
        null_rerun_sentence(contents),
        *_section("tolerances of the source", tolerance_lines(contents.checks)),
        *_section("not there", [*_missing(contents)]),
        "",
        "VERDICTS",
        *map(verdict_line, contents.analysis.findings),
    ]


def null_rerun_sentence(contents: Contents) -> str:
    """What became of the null re-run, in one sentence."""
    name = contents.parameters.rerun
    finding = next((f for f in contents.analysis.findings if f.contrast.name == name), None)
    if finding is None:
        return "null re-run: none, for `parameters.rerun` names no contrast."
    said = f"null re-run: {finding.contrast.treatment} against {finding.contrast.control}"
    if contents.rerun is None:
        cell = next(cell for cell in contents.cells(MEASURE) if cell.slice == name)
        return f"{said} was not timed, {_short(contents.progress.why_missing(cell))}."
    ratios = ", ".join(f"tok/s ratio {_ratio(session)}" for session in contents.rerun.sessions)
    runs = f"{len(contents.rerun.believed)} runs believed, {sum(map(len, contents.rerun.rejected.values()))} rejected"
    why, _, _ = finding.judgement.reason.removesuffix(".").partition(". ")  # the rest stands under VERDICTS
    return f"{said} is {finding.judgement.verdict} ({ratios}; {runs}): {why}."


def _section(title: str, lines: list[str]) -> list[str]:
    return ["", title, *(f"  {line}" for line in lines)] if lines else []


def _name(contents: Contents, cell: Cell) -> str:
    seed = f", seed {cell.seed}" if len(contents.study.seeds) > 1 else ""
    return f"{cell.arm}{f' {cell.replicate}' if cell.replicate else ''}{seed}"


def _arm(contents: Contents, cell: Cell) -> list[str]:
    name, result = _name(contents, cell), contents.arms.get(cell.id)
    return [name, _short(contents.progress.why_missing(cell))] if result is None else [name, *_columns(result)]


def _columns(result: ArmResult) -> Iterator[str]:
    yield f"{result.slot_bytes:,} B" + ("" if result.kept is None else f" ({result.kept:.1%})")
    yield f"PPL {_number(result.token_perplexity, '.4f')} {_ends(result.perplexity_interval, '.4f')}"
    yield result.weights[:12]
    yield f"tok/s {_ratio(result.speed)}" if result.speed else "not timed"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns of one width; why an arm is missing stands in the place of them."""
    whole = [row[1:] for row in rows if len(row) > 2]
    widths = [max(len(row[0]) for row in rows), *(max(map(len, column)) for column in zip(*whole, strict=True))]
    return ["  ".join([*map(str.ljust, row, widths), *row[len(widths) :]]).rstrip() for row in rows]


def _speculation(contents: Contents, cell: Cell) -> str:
    name, result = _name(contents, cell), contents.speculations.get(cell.id)
    if result is None:
        return f"{name}: {_short(contents.progress.why_missing(cell))}"
    return f"{name} (drafts with {cell.parameters['speculation']['drafter']}): {_speculated(contents, result)}"


def _speculated(contents: Contents, result: SpeculationResult) -> str:
    found, session = result.metrics, contents.measured_speed_up(result)
    equal = found["prompts_equal_to_greedy"]
    greedy = "" if equal is None else f"; {equal} of {found['prompts']} texts equal greedy decoding"
    measured = _ratio(session) if session else "not"
    again = ""
    if session and result.timed:
        again = f", {_number(result.timed['predicted_speed_up'], '.3f')} predicted from the timed runs"
    return (
        f"acceptance {_number(found['acceptance'], '.3f')}, α {_number(found['alpha'], '.3f')}, "
        f"{_number(found['tokens_per_round'], '.2f')} tokens a round; "
        f"speed-up {_number(found['predicted_speed_up'], '.3f')} predicted from the prompts{again}, "
        f"{measured} measured{greedy}"
    )


def _session(contents: Contents, cell: Cell) -> Iterator[str]:
    session = contents.sessions.get(cell.id)
    if session is None:
        seed = f", seed {cell.seed}" if len(contents.study.seeds) > 1 else ""
        yield f"{cell.slice}{seed}: {_short(contents.progress.why_missing(cell))}"
        return
    judged = session.judgement
    controls = f"A/A {_difference(judged.again)}, positive control {_difference(judged.slowed)}"
    yield f"{session.name}: {judged.session}; {controls}"
    yield from (f"  · {reason}" for reason in judged.reasons[1:])  # the first is the contrast's, told under VERDICTS


def _missing(contents: Contents) -> Iterator[str]:
    """Stages that no arm and no session is named after."""
    for cell in (*contents.cells(SPECTRA), *contents.cells(SWEEP)):
        if not contents.progress.is_done(cell):
            yield f"{cell.label}: {_short(contents.progress.why_missing(cell))}"


def _difference(difference: SpeedDifference | None) -> str:
    if difference is None:
        return "not run"
    told = difference.judgement.verdict.value
    return told if difference.estimate is None else f"{told} ({difference.estimate:+.2%})"


def _ratio(session: TimingSession) -> str:
    """With what it is a ratio to, and whether it may be believed."""
    state = session.judgement.session
    if session.ratio is None:
        return f"unknown ({state})"
    told = f"{session.ratio:.3f} {_ends(session.ratio_interval, '.3f')} of {session.contrast.control}"
    return told if state is State.CLEAN else f"{told} ({state})"


def _ends(interval: Interval | None, form: str) -> str:
    return "[no interval]" if interval is None else f"[{interval.low:{form}}, {interval.high:{form}}]"


def _number(value: float | None, form: str) -> str:
    return "unknown" if value is None else f"{value:{form}}"


def _short(text: str) -> str:
    return shorten(text, LONGEST_REASON, placeholder=" …")
