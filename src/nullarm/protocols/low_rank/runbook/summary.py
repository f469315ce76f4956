"""`summary.json`: every number of the closing block, and those behind them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from nullarm.protocols.low_rank.results import ArmResult, SpeculationResult
from nullarm.protocols.low_rank.runbook.contents import Contents
from nullarm.protocols.low_rank.runbook.null_rerun import session_judgement
from nullarm.protocols.low_rank.sessions import TimingSession
from nullarm.protocols.low_rank.tables import EVALUATE, MEASURE, SPECULATE
from nullarm.protocols.low_rank.tolerances import ALLOWED, Check
from nullarm.report.numbers import finite
from nullarm.stats.verdict import Interval
from nullarm.study.plan import Cell


def summary(contents: Contents) -> dict[str, Any]:
    """The data; what was not measured is null or says why it is missing, and is never 0."""
    study, analysis = contents.study, contents.analysis
    return {
        "study": study.name,
        "protocol": study.protocol,
        "smoke": study.smoke,
        "exploratory": analysis.exploratory,
        "plan_hash": contents.store.plan.hash,
        "analysis_hash": analysis.analysis_hash,
        "arms": [_arm(contents, cell) for cell in contents.cells(EVALUATE)],
        "speculation": [_speculation(contents, cell) for cell in contents.cells(SPECULATE)],
        "sessions": [_session(contents, cell) for cell in contents.cells(MEASURE)],
        "verdicts": {
            f.judgement.name: {
                "treatment": f.contrast.treatment, "control": f.contrast.control, "kind": f.contrast.kind,
                "primary": f.contrast.primary, **f.judgement.to_json(),
            }
            for f in analysis.findings
        },
        "tolerances": {"source": ALLOWED, "checks": [_check(check) for check in contents.checks]},
        "failures": contents.progress.failures(),
        "unfinished": contents.progress.unfinished(),
    }  # fmt: skip


def _arm(contents: Contents, cell: Cell) -> dict[str, Any]:
    arm = str(cell.arm)
    result = contents.arms.get(cell.id)
    return {
        "arm": arm,
        "seed": cell.seed,
        "replicate": cell.replicate,
        **_status(contents, cell, result),
        "verdicts": {f.judgement.name: f.judgement.verdict.value for f in contents.findings(arm)},
        **(_measured(result) if result else {}),
    }


def _measured(result: ArmResult) -> dict[str, Any]:
    return {
        "bytes": result.bytes,
        "slot_bytes": result.slot_bytes,
        "share_kept": result.kept,
        "perplexity": {
            "token": result.token_perplexity,
            "token_interval": _interval(result.perplexity_interval),
            "word": result.word_perplexity,
            "byte": result.byte_perplexity,
        },
        "nll_rise": {"nats_per_token": result.rise, "interval": _interval(result.rise_interval)},
        "tokens_per_s_ratio": _ratio(result.speed) if result.speed else None,
        "hashes": {"weights": result.weights, "logits": result.logits},
        "peak_memory_bytes": result.peak_memory_bytes,
    }


def _speculation(contents: Contents, cell: Cell) -> dict[str, Any]:
    result = contents.speculations.get(cell.id)
    return {
        "arm": cell.arm,
        "seed": cell.seed,
        "settings": dict(cell.parameters["speculation"]),
        **_status(contents, cell, result),
        **(_speculated(contents, result) if result else {}),
    }


def _speculated(contents: Contents, result: SpeculationResult) -> dict[str, Any]:
    session = contents.measured_speed_up(result)
    measured = _ratio(session) if session else None
    return {**result.metrics, "timed_runs": result.timed, "measured_speed_up": measured}


def _session(contents: Contents, cell: Cell) -> dict[str, Any]:
    session = contents.sessions.get(cell.id)
    return {
        "contrast": cell.slice,
        **cell.settings["arms"],
        "seed": cell.seed,
        **_status(contents, cell, session),
        **(_timed(session) if session else {}),
    }


def _timed(session: TimingSession) -> dict[str, Any]:
    return {"ratio": _ratio(session), "medians": session.medians, "judgement": session_judgement(session)}


def _ratio(session: TimingSession) -> dict[str, Any]:
    return {
        "contrast": session.contrast.name,
        "control": session.contrast.control,
        "ratio": session.ratio,
        "interval": _interval(session.ratio_interval),
        "session": session.judgement.session.value,
    }


def _check(check: Check) -> dict[str, Any]:
    return {**asdict(check), "found": finite(check.found)}


def _status(contents: Contents, cell: Cell, result: object) -> dict[str, Any]:
    return {"cell": cell.id, "status": contents.progress.why_missing(cell) if result is None else "done"}


def _interval(interval: Interval | None) -> dict[str, Any] | None:
    return None if interval is None else {"low": interval.low, "high": interval.high, "level": interval.level}
