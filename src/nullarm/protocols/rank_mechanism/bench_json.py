"""`seed_<s>/bench.json`: one seed under the runbook's field names. What is missing is null, never 0 or NaN."""

from __future__ import annotations

from typing import Any

import nullarm
from nullarm.protocols.rank_mechanism.arms import AUDITED, PROBE, SHUFFLED, map_key
from nullarm.protocols.rank_mechanism.invariants import protocol_invariants
from nullarm.protocols.rank_mechanism.seed_results import ACCURACY, Run, SeedResults, legacy_name
from nullarm.study.identity import content_hash
from nullarm.study.spec import Study

BENCH_VERSION = f"nullarm/{nullarm.__version__}"
ROUNDING = 1e-12
"""What a difference of means may miss a limit by, and still be at it."""


def bench(study: Study, results: SeedResults) -> dict[str, Any]:
    """The content of one seed's `bench.json`.

    Args:
        study: The study.
        results: What the store holds of the seed.
    """
    variants = {legacy_name(arm): _variant(study, results, arm) for arm in results.runs if arm != PROBE}
    provenance = dict(results.records[0][1].provenance) if results.records else {}
    return {
        "bench_version": BENCH_VERSION,
        "timestamp": results.finished_at,
        "git_commit": (provenance.pop("git", None) or {}).get("commit"),
        "env": provenance,
        "seed": results.seed,
        "smoke": study.smoke,
        "status": results.status,
        "reason": results.reason,
        "model": study.parameters["model"],
        "task": study.parameters["task"],
        "probe_quality_gate": _gate(study, results),
        "probe": _probe(study, results),
        "compressed": variants,
        "summary": _summary(results, variants),
        "config_metadata": {
            "primary_metric_key": study.analysis.metric,
            "config_hash": content_hash(study.model_dump(mode="json")),
            "embedded_config": study.model_dump(mode="json"),
        },
        "instrumentation": {
            legacy_name(arm): [_cost(run) for run in runs if run.finished] for arm, runs in results.runs.items()
        },
        "protocol_invariants": protocol_invariants(results),
    }


def measurements(study: Study) -> tuple[str, ...]:
    """The per-item measurements that the files give: accuracy and, where it is another one, the declared metric."""
    return tuple(dict.fromkeys((ACCURACY, study.analysis.metric)))


def tolerance(study: Study) -> float:
    """Loss against the probe that still passes, in units of the declared metric.

    The margin of the declared non-inferiority contrast against the probe, else the analysis' margin.
    """
    margins = (
        c.margin for c in study.analysis.contrasts if c.kind == "non_inferiority" and c.control == PROBE and c.margin
    )
    return next(margins, study.analysis.margin)


def param_reduction(results: SeedResults, arm: str) -> float | None:
    """Share of the probe's LoRA parameters that the arm saves."""
    mine, probe = results.parameters(arm), results.parameters(PROBE)
    return 1 - mine / probe if mine is not None and probe else None


def delta_vs_probe(results: SeedResults, arm: str, measurement: str) -> float | None:
    """Mean of the arm minus mean of the probe."""
    return _difference(results.mean(arm, measurement), results.mean(PROBE, measurement))


def passes(study: Study, results: SeedResults, arm: str) -> str | None:
    """`PASS` while the arm loses no more than the tolerance against the probe, else `FAIL`."""
    delta = delta_vs_probe(results, arm, study.analysis.metric)
    if delta is None:
        return None
    return "PASS" if delta >= -tolerance(study) - ROUNDING else "FAIL"


def _gate(study: Study, results: SeedResults) -> dict[str, Any]:
    gate = study.parameters.get("gate")
    if not gate:
        return {"metric_key": None, "metric_value": None, "min_value": None, "passed": None}
    key = gate.get("metric", ACCURACY)
    value = results.probe.metric(f"dev_{key}") if results.probe else None
    passed = None if value is None else value >= gate["min_value"]
    return {"metric_key": f"dev_{key}", "metric_value": value, "min_value": gate["min_value"], "passed": passed}


def _probe(study: Study, results: SeedResults) -> dict[str, Any]:
    return {
        **{name: results.mean(PROBE, name) for name in measurements(study)},
        "rank": study.parameters["probe_rank"],
        "params": results.parameters(PROBE),
        "cell": results.probe.cell.id if results.probe else None,
    }


def _variant(study: Study, results: SeedResults, arm: str) -> dict[str, Any]:
    runs = results.runs[arm]
    replicates = [_replicate(study, results, run) for run in runs]
    single = replicates[0] if len(runs) == 1 else {"rank": None, "rank_pattern": None, "rank_check": None}
    return {
        **{name: results.mean(arm, name) for name in measurements(study)},
        "rank": single["rank"],
        "rank_pattern": single["rank_pattern"],
        "params": results.parameters(arm),
        "delta_vs_probe": delta_vs_probe(results, arm, ACCURACY),
        "param_reduction": param_reduction(results, arm),
        "verdict": passes(study, results, arm),
        "rank_check": single["rank_check"],
        "replicates": replicates,
    }


def _replicate(study: Study, results: SeedResults, run: Run) -> dict[str, Any]:
    ranks = run.ranks or run.planned
    uniform = len(set(ranks.values())) == 1 if ranks else False
    distances = results.allocation["distances"] if results.allocation else {}
    distance = distances.get(map_key(str(run.cell.arm), run.cell.replicate), {})
    trained_as_planned = run.ranks == run.planned if run.ranks is not None and run.planned is not None else None
    return {
        "cell": run.cell.id,
        "replicate": run.cell.replicate or 1,
        **{name: run.mean(name) for name in measurements(study)},
        "params": run.metric("lora_parameters"),
        "rank": next(iter(ranks.values())) if ranks and uniform else None,
        "rank_pattern": dict(ranks) if ranks and not uniform else None,
        "rank_check": {
            "trained_as_planned": trained_as_planned,
            "modules": len(ranks) if ranks else None,
            "distinct_ranks": len(set(ranks.values())) if ranks else None,
            "modules_unlike_per_layer": distance.get("hamming"),
            "rank_change_from_per_layer": distance.get("rank_change"),
        },
    }


def _summary(results: SeedResults, variants: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {
        "n_variants": len(variants),
        "n_measured": sum(variant[ACCURACY] is not None for variant in variants.values()),
        "passed": [name for name, variant in variants.items() if variant["verdict"] == "PASS"],
        "failed": [name for name, variant in variants.items() if variant["verdict"] == "FAIL"],
        "per_layer_minus_shuffled": _difference(results.mean(AUDITED, ACCURACY), results.mean(SHUFFLED, ACCURACY)),
    }


def _cost(run: Run) -> dict[str, Any]:
    known = ("steps", "train_tokens", "train_loss")
    seconds = run.finished.record.seconds if run.finished else None
    return {"cell": run.cell.id, "seconds": seconds, **{name: run.metric(name) for name in known}}


def _difference(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first - second
