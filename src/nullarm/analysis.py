"""From the store to verdicts: the declared contrasts, judged on per-item measurements of finished cells."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from types import MappingProxyType
from typing import Any

import numpy as np

from nullarm.errors import InvalidResult, StudyError
from nullarm.stats.design import COUNTED_WHEN_MEASURED, TestName
from nullarm.stats.design import Design as ContrastDesign
from nullarm.stats.evidence import by_item
from nullarm.stats.judge import (
    apply_holm,
    judge_difference,
    judge_equivalence,
    judge_non_inferiority,
    judge_problem,
    judge_superiority,
    withhold,
)
from nullarm.stats.noise import Noise, noise_of_replicates
from nullarm.stats.pairing import LongScores, PairedScores, Problem, pair_scores
from nullarm.stats.power import minimum_detectable_effect
from nullarm.stats.verdict import Judgement, Unit, Verdict
from nullarm.store.files import write_json
from nullarm.store.record import FinishedCell
from nullarm.store.study_store import StudyStore, analysis_hash
from nullarm.store.tables import BLOCKS, ITEMS
from nullarm.study.plan import Cell
from nullarm.study.spec import Contrast, Study


@dataclass(frozen=True)
class Finding:
    """A judged contrast and the cells it rests on."""

    contrast: Contrast
    judgement: Judgement
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Analysis:
    """What a study directory allows to be said."""

    findings: tuple[Finding, ...]
    exploratory: bool
    """The analysis is not the one that was declared before the first cell ran."""
    analysis_hash: str
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What the protocol adds, as JSON data."""

    @property
    def primary(self) -> Finding:
        """The contrast that answers the question."""
        return next(f for f in self.findings if f.contrast.primary)

    def to_json(self) -> dict[str, Any]:
        """Plain data for `analysis.json`."""
        return {
            "verdict": self.primary.judgement.verdict.value,
            "exploratory": self.exploratory,
            "analysis_hash": self.analysis_hash,
            "findings": [
                {
                    **f.judgement.to_json(),
                    "treatment": f.contrast.treatment,
                    "control": f.contrast.control,
                    "kind": f.contrast.kind,
                    "primary": f.contrast.primary,
                    "cells": list(f.cells),
                }
                for f in self.findings
            ],
            **self.extra,
        }


@dataclass(frozen=True)
class Measured:
    """A finished cell that has per-item measurements."""

    cell: Cell
    finished: FinishedCell


def measured_cells(store: StudyStore, stages: Iterable[str]) -> list[Measured]:
    """The finished cells of `stages` that have an arm and per-item measurements, in plan order."""
    wanted = set(stages)
    pairs = [(cell, store.finished(cell.id)) for cell in store.plan if cell.stage in wanted and cell.arm]
    return [Measured(c, f) for c, f in pairs if f is not None and ITEMS in f.record.artefacts]


def analyse(
    store: StudyStore,
    stages: Sequence[str],
    extra: Mapping[str, Any] | None = None,
    given: Mapping[str, Judgement] = MappingProxyType({}),
    blind: Mapping[str, str] = MappingProxyType({}),
) -> Analysis:
    """Judge the declared contrasts.

    Args:
        store: The study directory.
        stages: Stages whose cells measure arms.
        extra: What the protocol adds.
        given: Judgements of contrasts, by name, whose scores are not to be read here: the protocol knows better.
        blind: Why contrasts, by name, can show no null, whatever the numbers.

    Raises:
        StudyError: The declared metric is not among the measurements.
    """
    study = store.lock.study
    cells = measured_cells(store, stages)
    if why_not := obstacle(store):
        given, blind = {c.name: withheld(study, c, Verdict.INVALID, why_not) for c in study.analysis.contrasts}, {}
    scores = None if why_not else _scores(cells, study)
    judged = [
        given[c.name]
        if c.name in given
        else _judge(study, c, _block_scores(store, c) if c.test == "paired_blocks" else scores)
        for c in study.analysis.contrasts
    ]
    findings = tuple(
        Finding(contrast, _seen(judgement, blind), _rests_on(contrast, cells, store))
        for contrast, judgement in zip(study.analysis.contrasts, apply_holm(judged), strict=True)
    )
    return Analysis(findings, store.lock.exploratory, analysis_hash(study), dict(extra or {}))


def withheld(study: Study, contrast: Contrast, verdict: Verdict, reason: str) -> Judgement:
    """A judgement of a contrast whose scores are not to be read."""
    return withhold(contrast.name, verdict, reason, alpha=study.analysis.alpha, margin=_margin(study, contrast))


def obstacle(store: StudyStore) -> str | None:
    """Why no verdict may be given, whatever the numbers; None when there may be one."""
    study = store.lock.study
    if study.smoke:
        return "this is a smoke run, which never enters a verdict"
    stopped = [(cell, f.record) for cell in store.plan if (f := store.finished(cell.id)) and f.record.outcome != "ok"]
    if stopped and study.analysis.incomplete == "invalid":
        cell, record = stopped[0]
        return f"{cell.label}: {record.reason}"
    missing = [cell for cell in store.plan if store.finished(cell.id) is None]
    if missing and study.analysis.incomplete == "invalid":
        return f"{len(missing)} of {len(store.plan)} cells are not finished, the first: {missing[0].label}"
    return None


def write_analysis(store: StudyStore, analysis: Analysis) -> None:
    """Write `analysis.json`."""
    write_json(store.paths.analysis, analysis.to_json())


def least_attainable_p(study: Study) -> dict[str, float | None]:
    """Of each declared contrast; None where the test has no such bound."""
    designs = {c.name: contrast_design(study, c) for c in study.analysis.contrasts}
    return {
        name: design.least_p if design.test == "within_seed_randomisation" else None for name, design in designs.items()
    }


def refusals(study: Study) -> tuple[str, ...]:
    """Why a contrast of this study can show nothing, for each one that cannot."""
    faults = [(c.name, contrast_design(study, c).fault()) for c in study.analysis.contrasts]
    return tuple(f"contrast {name!r}: {fault}" for name, fault in faults if fault)


def primary_effect(study: Study) -> float | None:
    """Minimum detectable effect of the primary contrast at 80 % power, in units of the metric.

    None without an expected standard deviation, when the design can show nothing at all, and when its units are counted
    as they are measured.
    """
    design = contrast_design(study, study.analysis.primary)
    if study.analysis.expected_sd is None or design.fault() or design.test in COUNTED_WHEN_MEASURED:
        return None
    noise = Noise(study.analysis.expected_sd)
    return minimum_detectable_effect(design, noise, rng=np.random.default_rng(study.analysis.seed))


def contrast_design(study: Study, contrast: Contrast) -> ContrastDesign:
    """The design of one contrast, as the statistics engine knows it."""
    return ContrastDesign(
        seeds=len(study.seeds),
        controls=study.arms[contrast.control].replicates,
        alpha=study.analysis.alpha,
        test=contrast.test,
        draws=study.analysis.resamples - 1,
        family=len(study.analysis.contrasts),
    )


def _scores(cells: Sequence[Measured], study: Study) -> LongScores:
    tables = [(m.cell, m.finished.table(ITEMS)) for m in cells]
    metric = study.analysis.metric
    for _, table in tables:
        if metric not in table.column_names or not str(table.schema.field(metric).type).startswith("double"):
            known = [f.name for f in table.schema if str(f.type) == "double"]
            raise StudyError(f"analysis.metric {metric!r} is not measured", valid=known)
    lengths = [len(table) for _, table in tables]
    return LongScores(
        arm=np.repeat([cell.arm or "" for cell, _ in tables], lengths),
        replicate=np.repeat([cell.replicate or 1 for cell, _ in tables], lengths),
        seed=np.repeat([cell.seed for cell, _ in tables], lengths),
        item=_column(tables, "item"),
        score=_column(tables, metric),
        cluster=_clusters(tables),
    )


def _seen(judgement: Judgement, blind: Mapping[str, str]) -> Judgement:
    """The judgement; a null that could not have been anything else is none."""
    if judgement.verdict is not Verdict.EQUIVALENT or judgement.name not in blind:
        return judgement
    return replace(judgement, verdict=Verdict.INVALID, reason=f"No null may be claimed: {blind[judgement.name]}.")


def _sessions(store: StudyStore, contrast: Contrast) -> list[Measured]:
    """The finished timing sessions that were held for a contrast."""
    pairs = [(cell, store.finished(cell.id)) for cell in store.plan if cell.slice == contrast.name]
    return [Measured(c, f) for c, f in pairs if f is not None and BLOCKS in f.record.artefacts]


def _block_scores(store: StudyStore, contrast: Contrast) -> LongScores | None:
    """Log tokens a second, block by block; sessions at other seeds are further blocks."""
    tables = [(m.cell.seed, m.finished.table(BLOCKS)) for m in _sessions(store, contrast)]
    if not tables:
        return None
    blocks = [f"{seed}/{block}" for seed, table in tables for block in table["item"].to_pylist()]
    scores = [np.concatenate([t[role].to_numpy() for _, t in tables]) for role in ("treatment", "control")]
    one = np.ones(2 * len(blocks), dtype=np.int64)
    return LongScores(
        arm=np.repeat([contrast.treatment, contrast.control], len(blocks)),
        replicate=one, seed=one, item=np.array(2 * blocks), score=np.concatenate(scores),
    )  # fmt: skip


def _clusters(tables: Sequence[tuple[Cell, Any]]) -> Any:
    """Cluster of every row, an item without one being its own; None when no row has one."""
    labels = [t["cluster"].to_pylist() if "cluster" in t.column_names else [None] * len(t) for _, t in tables]
    if all(label is None for column in labels for label in column):
        return None
    items = [table["item"].to_pylist() for _, table in tables]
    pairs = zip(chain(*labels), chain(*items), strict=True)
    return np.array([item if label is None else label for label, item in pairs], dtype=str)


def _column(tables: Sequence[tuple[Cell, Any]], name: str) -> Any:
    columns = [table[name].to_numpy(zero_copy_only=False) for _, table in tables]
    values = np.concatenate(columns) if columns else np.array([])
    return values.astype(str) if values.dtype == object else values


def _judge(study: Study, contrast: Contrast, scores: LongScores | None) -> Judgement:
    analysis = study.analysis
    if scores is None:
        raise StudyError(f"contrast {contrast.name!r} has no measurements")
    arms = [contrast.treatment, contrast.control]
    seeds: Sequence[int] | None = study.seeds
    if contrast.test == "paired_blocks":
        seeds = None
    elif analysis.incomplete == "drop_seed":
        seeds = _complete_seeds(scores, study, arms)
    paired = pair_scores(scores, arms=arms, seeds=seeds)
    margin = _margin(study, contrast)
    if isinstance(paired, Problem):
        return judge_problem(contrast.name, paired, alpha=analysis.alpha, margin=margin)
    return _judge_paired(study, contrast, paired, margin)


def _judge_paired(study: Study, contrast: Contrast, paired: PairedScores, margin: float) -> Judgement:
    analysis = study.analysis
    treated = paired.replicates(contrast.treatment).mean(axis=1)
    controls = paired.replicates(contrast.control)
    rng = np.random.default_rng([analysis.seed, *contrast.name.encode()])
    shared: dict[str, Any] = {
        "alpha": analysis.alpha, "margin": margin, "rng": rng,
        "clusters": paired.clusters, "resamples": analysis.resamples,
    }  # fmt: skip
    if contrast.test in COUNTED_WHEN_MEASURED:
        clustered = paired.clusters is not None
        treated, controls = by_item(treated, controls, paired.clusters)
        shared |= {"clusters": None, "unit": _unit(contrast, clustered)}
    test: TestName = "within_seed_randomisation" if contrast.test == "within_seed_randomisation" else "paired_t"
    if contrast.kind == "difference":
        return judge_difference(contrast.name, treated, controls, **shared)
    if contrast.kind == "equivalence":
        return judge_equivalence(contrast.name, treated, controls, **shared)
    if contrast.kind == "non_inferiority":
        return judge_non_inferiority(contrast.name, treated, controls, **shared)
    draws = analysis.resamples - 1
    return judge_superiority(contrast.name, treated, controls, test=test, draws=draws, **shared)


def _unit(contrast: Contrast, clustered: bool) -> Unit:
    if contrast.test == "paired_blocks":
        return "blocks"
    return "clusters" if clustered else "items"


def _complete_seeds(scores: LongScores, study: Study, arms: Sequence[str]) -> list[int]:
    """The seeds at which both arms have all their replicates."""
    have = set(zip(np.asarray(scores.arm).tolist(), np.asarray(scores.replicate).tolist(),
                   np.asarray(scores.seed).tolist(), strict=True))  # fmt: skip
    wanted = [(arm, k) for arm in arms for k in range(1, study.arms[arm].replicates + 1)]
    return [seed for seed in study.seeds if all((arm, k, seed) in have for arm, k in wanted)]


def _margin(study: Study, contrast: Contrast) -> float:
    return study.analysis.margin if contrast.margin is None else contrast.margin


def _rests_on(contrast: Contrast, cells: Sequence[Measured], store: StudyStore) -> tuple[str, ...]:
    if contrast.test == "paired_blocks":
        return tuple(m.cell.id for m in _sessions(store, contrast))
    return tuple(m.cell.id for m in cells if m.cell.arm in (contrast.treatment, contrast.control))


def pilot_noise(store: StudyStore, arms: Sequence[str]) -> Noise:
    """A/A noise in a finished or half-finished study: how far cells that differ in nothing but chance lie apart.

    Args:
        store: The pilot's study directory.
        arms: Arms whose cells count as repetitions of one another at each seed (`audited` and `replicate`), or one arm
            with several replicates (`shuffled`, exchangeable under the null).

    Raises:
        StudyError: An arm is not in the study.
        InvalidResult: The cells cannot be paired, or there are fewer than two at a seed.
    """
    study = store.lock.study
    if unknown := [arm for arm in arms if arm not in study.arms]:
        raise StudyError(f"the pilot has no arm {unknown[0]!r}", valid=sorted(study.arms))
    cells = [m for m in measured_cells(store, {cell.stage for cell in store.plan}) if m.cell.arm in arms]
    if not cells:
        raise InvalidResult(f"the pilot has no finished cell of {', '.join(arms)}", next_command="run the pilot first")
    paired = pair_scores(_scores(cells, study), arms=list(arms))
    if isinstance(paired, Problem):
        raise InvalidResult(f"the pilot's cells cannot be paired: {paired.message}")
    return noise_of_replicates(np.concatenate([paired.replicates(arm) for arm in arms], axis=1))
