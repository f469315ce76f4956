"""`aggregated_results.json`: every arm over seeds, under the runbook's field names. Spread has ddof = 1."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

from nullarm.analysis import Analysis, Finding
from nullarm.protocols.rank_mechanism.arms import PROBE
from nullarm.protocols.rank_mechanism.bench_json import (
    delta_vs_probe,
    measurements,
    param_reduction,
    passes,
    tolerance,
)
from nullarm.protocols.rank_mechanism.seed_results import ACCURACY, SeedResults, legacy_name
from nullarm.study.spec import Study


def aggregated_results(study: Study, results: Sequence[SeedResults], analysis: Analysis) -> dict[str, Any]:
    """The content of `aggregated_results.json`.

    Args:
        study: The study.
        results: What the store holds of each seed.
        analysis: The judged contrasts.
    """
    arms = [arm for arm in study.arms if arm != PROBE]
    return {
        "n_seeds": len(results),
        "seeds": [result.seed for result in results],
        "status": {str(result.seed): result.status for result in results},
        "smoke": study.smoke,
        "primary_metric_key": study.analysis.metric,
        "acc_tolerance": tolerance(study),
        "probe": {
            **arm_spreads(study, results, PROBE),
            "params": over_seeds(results, [r.parameters(PROBE) for r in results]),
        },
        "compressed": {legacy_name(arm): _variant(study, results, analysis, arm) for arm in arms},
        "summary": {
            "n_complete_seeds": sum(result.status == "OK" for result in results),
            "verdicts": {f.judgement.name: f.judgement.verdict.value for f in analysis.findings},
            "exploratory": analysis.exploratory,
        },
    }


def arm_spreads(study: Study, results: Sequence[SeedResults], arm: str) -> dict[str, Any]:
    """`{measurement: {mean, std, values, seeds}}` of an arm."""
    return {name: over_seeds(results, [r.mean(arm, name) for r in results]) for name in measurements(study)}


def over_seeds(results: Sequence[SeedResults], values: Sequence[float | None]) -> dict[str, Any]:
    """Mean and standard deviation (ddof = 1) over the seeds that have a value, which are named.

    Without any value the mean is None; with one, the standard deviation is.
    """
    known = {result.seed: value for result, value in zip(results, values, strict=True) if value is not None}
    return {
        "mean": fmean(known.values()) if known else None,
        "std": stdev(known.values()) if len(known) > 1 else None,
        "values": list(known.values()),
        "seeds": list(known),
    }


def finding_of(analysis: Analysis, treatment: str, control: str) -> Finding | None:
    """The declared contrast between two arms, the primary one first; None when none was declared."""
    found = [f for f in analysis.findings if (f.contrast.treatment, f.contrast.control) == (treatment, control)]
    return next(iter(sorted(found, key=lambda f: not f.contrast.primary)), None)


def _variant(study: Study, results: Sequence[SeedResults], analysis: Analysis, arm: str) -> dict[str, Any]:
    individual = [passes(study, result, arm) for result in results]
    known = [word for word in individual if word is not None]
    judged = finding_of(analysis, arm, PROBE)
    return {
        **arm_spreads(study, results, arm),
        "delta_vs_probe": over_seeds(results, [delta_vs_probe(r, arm, ACCURACY) for r in results]),
        "param_reduction": over_seeds(results, [param_reduction(r, arm) for r in results]),
        "params": over_seeds(results, [r.parameters(arm) for r in results]),
        "pass_rate": known.count("PASS") / len(known) if known else None,
        "verdict": judged.judgement.verdict.value if judged else None,
        "individual_verdicts": individual,
    }
