"""The source's `mcr_ablation` files, of the contrast that `parameters.rerun` names.

| file | runs |
|---|---|
| `mcr_ablation.csv` | those that may be believed; `baseline` is the control, `mcr` the treatment |
| `mcr_ablation_run1_contaminated.csv` | those that may not, of first attempts; `run2` of second ones, and so on |
| `mcr_ablation_summary.json` | numbers of the former, and the judgement |

Only runs of the contrast itself are in them, A/A and the injected slowdown are not. Of a session that is CONTAMINATED
as a whole no run may be believed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from nullarm.analysis import Finding
from nullarm.bench.blocks import judged
from nullarm.bench.runs import Run, State
from nullarm.bench.source_csv import BASELINE, SourceRun, write_runs
from nullarm.protocols.low_rank.runbook.files import write_data
from nullarm.protocols.low_rank.sessions import TimingSession
from nullarm.store.atomic import make_directory
from nullarm.store.study_store import StudyStore

TAGS = {"control": BASELINE, "treatment": "mcr"}
RUNS = "mcr_ablation.csv"
SUMMARY = "mcr_ablation_summary.json"


@dataclass(frozen=True)
class NullRerun:
    """The sessions of the contrast, and what is thought of them.

    Attributes:
        sessions: One a seed; at least one.
        finding: The judged contrast; None while the study runs.
    """

    sessions: tuple[TimingSession, ...]
    finding: Finding | None = None

    @property
    def believed(self) -> list[Run]:
        """The runs that may enter a verdict."""
        return [run for session in self.sessions for run in _believed(session)]

    @property
    def rejected(self) -> dict[int, list[Run]]:
        """All other runs of the contrast, by the attempt of their block."""
        found: dict[int, list[Run]] = {}
        for session in self.sessions:
            kept = {run.run for run in _believed(session)}
            for run in session.runs:
                if run.phase == "contrast" and run.run not in kept:
                    found.setdefault(run.attempt, []).append(run)
        return found


def null_rerun(
    store: StudyStore, sessions: Sequence[TimingSession], findings: Iterable[Finding] = ()
) -> NullRerun | None:
    """The null re-run, or None when none is asked for, or none of its sessions has ended."""
    name = store.lock.study.parameters.get("rerun")
    mine = tuple(session for session in sessions if session.contrast.name == name)
    finding = next((finding for finding in findings if finding.contrast.name == name), None)
    return NullRerun(mine, finding) if mine else None


def write_null_rerun(store: StudyStore, rerun: NullRerun | None) -> list[Path]:
    """Write the files, and remove those that an earlier plan has left behind.

    Raises:
        StorageError: The disk is full, read-only or gone.
    """
    output = store.paths.output
    make_directory(output)
    written = list(_write(output, rerun)) if rerun else []
    for path in set(output.glob("mcr_ablation*")) - set(written):
        path.unlink()
    return written


def _write(output: Path, rerun: NullRerun) -> Iterator[Path]:
    rejected = {f"mcr_ablation_run{n}_contaminated.csv": runs for n, runs in sorted(rerun.rejected.items())}
    for name, runs in {RUNS: rerun.believed, **rejected}.items():
        write_runs(output / name, _source_runs(runs))
        yield output / name
    yield write_data(output / SUMMARY, summary(rerun))


def summary(rerun: NullRerun) -> dict[str, Any]:
    """The source's keys, and ours beside them: `arms`, `verdict`, `reason`, `rejected_runs`, `sessions`."""
    first = rerun.sessions[0]
    bench = first.cell.parameters["bench"]
    speeds = {tag: [r.tokens_per_s for r in rerun.believed if TAGS[r.arm] == tag] for tag in TAGS.values()}
    arms = {tag: _sample(values) for tag, values in speeds.items()}
    mcr, baseline = arms["mcr"]["mean"], arms[BASELINE]["mean"]
    judgement = rerun.finding.judgement if rerun.finding else None
    return {
        "model": first.cell.settings["model"],
        "prompt": bench["prompt"],
        "n_decode": bench["tokens"],
        **arms,
        "mcr_over_baseline": mcr / baseline if mcr is not None and baseline is not None else None,
        "arms": {BASELINE: first.contrast.control, "mcr": first.contrast.treatment},
        "verdict": judgement.verdict.value if judgement else None,
        "reason": judgement.reason if judgement else None,
        "rejected_runs": sum(map(len, rerun.rejected.values())),
        "sessions": {session.name: session_judgement(session) for session in rerun.sessions},
    }


def session_judgement(session: TimingSession) -> dict[str, Any]:
    """A session's by itself, whose verdict is not that of the contrast: arms may have run the same weights."""
    told = session.judgement.to_json()
    return {"verdict_of_session_alone": told.pop("verdict"), **told}


def _believed(session: TimingSession) -> list[Run]:
    if session.judgement.session is State.CONTAMINATED:
        return []
    return [run for run in judged(session.runs) if run.phase == "contrast"]


def _source_runs(runs: Iterable[Run]) -> list[SourceRun]:
    """Lines in the order of the runs, each arm's repetitions numbered from 1."""
    seen: Counter[str] = Counter()
    lines = []
    for run in runs:
        tag = TAGS[run.arm]
        seen[tag] += 1
        lines.append(SourceRun(tag, seen[tag], run.tokens_per_s, run.prefill_s + run.decode_s, 0))
    return lines


def _sample(values: Sequence[float]) -> dict[str, float | int | None]:
    """Of an arm without runs nothing is known, which is None and not 0."""
    return {
        "n": len(values),
        "mean": fmean(values) if values else None,
        "stdev": stdev(values) if len(values) > 1 else None,
        "min": min(values, default=None),
        "max": max(values, default=None),
    }
