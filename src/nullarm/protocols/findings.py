"""What every protocol's report has: the verdict cards, where the results came from, and the list of cells."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence

import nullarm
from nullarm.analysis import Analysis, Finding
from nullarm.report import CellRef, Document, IntervalPlot, IntervalRow, KeyValues, Note, Section, VerdictCard
from nullarm.stats.verdict import Verdict
from nullarm.store.study_store import StudyStore
from nullarm.study.plan import Cell

LOG_RATIO = "log ratio of tokens/s"
"""Unit of a contrast that a timing session decides; other contrasts are in the study's metric."""


def document_of(store: StudyStore, analysis: Analysis, sections: Sequence[Section]) -> Document:
    """A report: verdicts, intervals against the margin, the protocol's own sections, provenance, cells."""
    study = store.lock.study
    notes = (Note("The analysis was changed after cells had run: it is exploratory.", "warning"),)
    exploratory = (Section("Exploratory", notes),) if analysis.exploratory else ()
    return Document(
        title=study.name,
        question=study.question,
        subtitle=f"protocol {study.protocol} · {len(study.seeds)} seed{'s' if len(study.seeds) > 1 else ''} · "
        f"metric {study.analysis.metric}" + (" · SMOKE RUN" if study.smoke else ""),
        verdicts=tuple(_card(finding, analysis) for finding in analysis.findings),
        sections=(*exploratory, _intervals(store, analysis), *sections, _provenance(store, analysis)),
        cells=tuple(_cells(store)),
    )


def verdict_line(finding: Finding) -> str:
    """A verdict with what was compared and why, for a closing block."""
    contrast, judged = finding.contrast, finding.judgement
    return f"{judged.name} ({contrast.treatment} against {contrast.control}): {judged.verdict}. {judged.reason}"


def unfinished(store: StudyStore, stage: str, done: Collection[str]) -> Iterator[tuple[Cell, str]]:
    """The cells of a stage that are not among the finished ones, each with how far it has got."""
    lines = {line.id: line for line in store.journal.entries()}
    for cell in store.plan:
        if cell.stage == stage and cell.id not in done:
            line = lines.get(cell.id)
            yield cell, f"{line.state}. {line.message or ''}".strip() if line else "open"


def _card(finding: Finding, analysis: Analysis) -> VerdictCard:
    judged = finding.judgement
    harmful = judged.verdict is Verdict.HARMFUL
    settled = judged.verdict in (Verdict.CONFIRMED, Verdict.HARMFUL, Verdict.EQUIVALENT, Verdict.DIFFERENT)
    return VerdictCard(
        name=f"{judged.name}: {finding.contrast.treatment} against {finding.contrast.control}",
        verdict=judged.verdict.value,
        reason=judged.reason,
        question=finding.contrast.kind,
        estimate=judged.estimate,
        interval=(judged.interval.low, judged.interval.high) if judged.interval else None,
        level=judged.interval.level if judged.interval else 0.95,
        unit=LOG_RATIO if _timed(finding) else "",
        test=judged.test + (", in the harmful direction" if harmful else ""),
        p_value=judged.p_harm if harmful else judged.p,
        p_adjusted=None if harmful else judged.p_adjusted,
        n=judged.n_seeds,
        n_unit=f"{judged.unit} × {judged.n_items} items" if judged.n_items else judged.unit,
        n_needed=None if settled else judged.n_needed,
        margin=judged.margin or None,
        minimum_detectable_effect=judged.mde,
        cells=finding.cells,
        primary=finding.contrast.primary,
        exploratory=analysis.exploratory,
    )


def _intervals(store: StudyStore, analysis: Analysis) -> Section:
    """One plot for the study's metric, one for speeds: they share no axis."""
    metric = store.lock.study.analysis.metric
    speeds = [finding for finding in analysis.findings if _timed(finding)]
    others = [finding for finding in analysis.findings if not _timed(finding)]
    plots = (
        _interval_plot(store, "Declared contrasts", f"difference in {metric}", others),
        _interval_plot(store, "Declared contrasts of speed", LOG_RATIO, speeds),
    )
    return Section("Effects against the margin", tuple(plot for plot in plots if plot.rows))


def _interval_plot(store: StudyStore, title: str, x_label: str, findings: Sequence[Finding]) -> IntervalPlot:
    declared = store.lock.study.analysis
    rows = tuple(
        IntervalRow(
            label=f"{f.contrast.treatment} − {f.contrast.control}",
            estimate=f.judgement.estimate,
            interval=(f.judgement.interval.low, f.judgement.interval.high) if f.judgement.interval else None,
            verdict=f.judgement.verdict.value,
            cells=f.cells,
            level=f.judgement.interval.level if f.judgement.interval else None,
        )
        for f in findings
    )
    return IntervalPlot(title, rows, x_label, declared.margin, 1 - 2 * declared.alpha)


def _timed(finding: Finding) -> bool:
    return finding.contrast.test == "paired_blocks"


def _provenance(store: StudyStore, analysis: Analysis) -> Section:
    records = [f.record for cell in store.plan if (f := store.finished(cell.id))]
    seconds, cost = store.journal.spent()
    items: list[tuple[str, str | int | float | bool | None]] = [
        ("nullarm", nullarm.__version__),
        ("plan", store.plan.hash),
        ("analysis", analysis.analysis_hash),
        ("machine time, h", round(seconds / 3600, 3)),
        ("cost, $", round(cost, 2)),
        ("attempts beyond the first", sum(r.attempt - 1 for r in records)),
    ]
    for key in ("git", "python", "packages", "host", "system", "gpus"):
        seen = Counter(_flat(r.provenance.get(key)) for r in records)
        items.append((key, "; ".join(f"{value}" for value, _ in seen.most_common())))
    return Section("Provenance", (KeyValues("Where the results came from", tuple(items)),))


def _flat(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {v}" for k, v in value.items())
    return ", ".join(str(v) for v in value) if isinstance(value, list | tuple) else str(value)


def _cells(store: StudyStore) -> list[CellRef]:
    refs = []
    for cell in store.plan:
        finished = store.finished(cell.id)
        record = store.paths.cell(cell.id).record.relative_to(store.paths.root).as_posix() if finished else ""
        label = f"{cell.label} · {cell.stage}"
        refs.append(CellRef(cell.id, label, finished.record.outcome if finished else "open", record))
    return refs
