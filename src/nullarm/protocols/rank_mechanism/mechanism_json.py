"""`mechanism_analysis.json`: the runbook's two tests, with the statistics that were declared instead of a made-up p."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import nullarm
from nullarm.analysis import Analysis, Finding
from nullarm.protocols.rank_mechanism.aggregate import arm_spreads, finding_of
from nullarm.protocols.rank_mechanism.arms import AUDITED, PROBE, SHUFFLED
from nullarm.protocols.rank_mechanism.bench_json import ROUNDING
from nullarm.protocols.rank_mechanism.seed_results import SeedResults, legacy_name
from nullarm.stats.paired import cohens_d, mcnemar_exact, paired_t
from nullarm.stats.verdict import Judgement, Verdict
from nullarm.study.plan import Plan
from nullarm.study.spec import Study

CERTIFIABLE_SEEDS, CERTIFIABLE_STEPS = 3, 500
"""The source's levels: fewer seeds or steps are screening."""


def mechanism_analysis(study: Study, plan: Plan, results: Sequence[SeedResults], analysis: Analysis) -> dict[str, Any]:
    """The content of `mechanism_analysis.json`.

    Args:
        study: The study.
        plan: Its cells.
        results: What the store holds of each seed.
        analysis: The judged contrasts.
    """
    compression = finding_of(analysis, AUDITED, PROBE)
    mechanism = finding_of(analysis, AUDITED, SHUFFLED)
    benefit = _test(results, study.analysis.metric, mechanism, "benefit")
    return {
        "performance_data": {legacy_name(arm): arm_spreads(study, results, arm) for arm in study.arms},
        "compression_efficacy": _test(results, study.analysis.metric, compression, "delta"),
        "mechanism_benefit": {**benefit, "mcnemar": _mcnemar(results) if benefit["benefit"] is not None else []},
        "experiment_metadata": _metadata(study, plan, results, analysis),
    }


def _test(results: Sequence[SeedResults], metric: str, finding: Finding | None, effect: str) -> dict[str, Any]:
    """One test: the judgement, and t and d over seeds beside it."""
    if finding is None:
        fields = ("effect_size_cohens_d", "t_statistic", "p_value", "is_statistically_significant",
                  "is_practically_significant", "threshold_met")  # fmt: skip
        return {effect: None, **dict.fromkeys(fields), "interpretation": "This contrast was not declared."}
    judged = finding.judgement
    return {
        effect: judged.estimate,
        **_descriptive(results, metric, finding),
        "p_value": judged.p,
        "is_statistically_significant": _significant(judged),
        "is_practically_significant": None if judged.estimate is None else _matters(finding),
        "threshold_met": None if judged.estimate is None else judged.verdict is Verdict.CONFIRMED,
        "threshold": judged.margin,
        "interpretation": judged.reason,
        **judged.to_json(),
        "kind": finding.contrast.kind,
        "cells": list(finding.cells),
    }


def _descriptive(results: Sequence[SeedResults], metric: str, finding: Finding) -> dict[str, float | str | None]:
    """Cohen's d and the paired t over seeds; None where no verdict was allowed."""
    pairs = [(r.mean(finding.contrast.treatment, metric), r.mean(finding.contrast.control, metric)) for r in results]
    known = [(a, b) for a, b in pairs if a is not None and b is not None]
    if finding.judgement.estimate is None or not known:
        return {"effect_size_cohens_d": None, "t_statistic": None, "t_p_value": None, "t_test": None}
    treated, control = zip(*known, strict=True)
    t = paired_t([a - b for a, b in known])
    return {
        "effect_size_cohens_d": cohens_d(treated, control),
        "t_statistic": t.statistic if t else None,
        "t_p_value": t.p_two_sided if t else None,
        "t_test": "paired t over seeds, two-sided; descriptive, the verdict rests on p_value",
    }


def _significant(judged: Judgement) -> bool | None:
    p = judged.p if judged.p_adjusted is None else judged.p_adjusted
    return None if p is None else p < judged.alpha


def _matters(finding: Finding) -> bool:
    estimate, margin = finding.judgement.estimate or 0.0, finding.judgement.margin
    return estimate >= (-margin if finding.contrast.kind == "non_inferiority" else margin) - ROUNDING


def _mcnemar(results: Sequence[SeedResults]) -> list[dict[str, Any]]:
    """Exact McNemar of the audited run against each shuffle, item by item; one seed's items say nothing about seeds."""
    rows = []
    for result in results:
        for audited in result.runs.get(AUDITED, ()):
            for shuffled in result.runs.get(SHUFFLED, ()):
                first, second = audited.items, shuffled.items
                if first is None or second is None or not first["item"].equals(second["item"]):
                    continue
                test = mcnemar_exact(first["accuracy"].to_numpy(), second["accuracy"].to_numpy())
                rows.append({
                    "seed": result.seed, "replicate": shuffled.cell.replicate or 1,
                    "only_per_layer": test.only_treated, "only_shuffled": test.only_control, "p_value": test.p,
                })  # fmt: skip
    return rows


def _metadata(study: Study, plan: Plan, results: Sequence[SeedResults], analysis: Analysis) -> dict[str, Any]:
    steps = int(study.parameters["training"]["steps"])
    certifiable = len(study.seeds) >= CERTIFIABLE_SEEDS and steps >= CERTIFIABLE_STEPS and not study.smoke
    return {
        "study": study.name,
        "question": study.question,
        "nullarm": nullarm.__version__,
        "model": study.parameters["model"],
        "task": study.parameters["task"],
        "seeds": list(study.seeds),
        "n_seeds": len(study.seeds),
        "n_shuffles": study.arms[SHUFFLED].replicates if SHUFFLED in study.arms else 0,
        "steps": steps,
        "smoke": study.smoke,
        "validation_level": "certifiable" if certifiable else "screening",
        "status": {str(result.seed): result.status for result in results},
        "metric": study.analysis.metric,
        "alpha": study.analysis.alpha,
        "exploratory": analysis.exploratory,
        "analysis_hash": analysis.analysis_hash,
        "plan_hash": plan.hash,
    }
