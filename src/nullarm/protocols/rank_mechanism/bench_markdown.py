"""`bench.md`: the runbook's results as one page of Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from nullarm.analysis import Analysis
from nullarm.protocols.rank_mechanism.aggregate import arm_spreads, over_seeds
from nullarm.protocols.rank_mechanism.arms import ARMS
from nullarm.protocols.rank_mechanism.bench_json import delta_vs_probe, measurements, param_reduction
from nullarm.protocols.rank_mechanism.closing import overall_conclusion, show_judgement, show_spread
from nullarm.protocols.rank_mechanism.seed_results import ACCURACY, SeedResults, legacy_name
from nullarm.report.markdown import inline
from nullarm.study.spec import Study

MISSING = "—"


def bench_markdown(study: Study, results: Sequence[SeedResults], analysis: Analysis) -> str:
    """The page: conclusion, arms, declared contrasts, seeds."""
    return "\n\n".join(
        [
            f"# {inline(study.name)}: {inline(study.question)}",
            f"**{inline(overall_conclusion(study, results, analysis))}**",
            *(["> The analysis was changed after cells had run: it is exploratory."] if analysis.exploratory else []),
            "## Arms",
            "Test split, mean ± standard deviation (ddof = 1) over seeds, replicates averaged within each seed.",
            _arms(study, results),
            "## Declared contrasts",
            _contrasts(analysis),
            "## Seeds",
            _seeds(results),
        ]
    ) + "\n"  # fmt: skip


def _arms(study: Study, results: Sequence[SeedResults]) -> str:
    heads = [
        "arm",
        "seeds",
        *measurements(study),
        "accuracy − probe",
        "LoRA parameters",
        "parameters saved",
        "what it is for",
    ]
    rows = []
    for arm in study.arms:
        spreads = list(arm_spreads(study, results, arm).values())
        parameters = over_seeds(results, [r.parameters(arm) for r in results])["mean"]
        saved = over_seeds(results, [param_reduction(r, arm) for r in results])["mean"]
        delta = over_seeds(results, [delta_vs_probe(r, arm, ACCURACY) for r in results])
        rows.append(
            [
                legacy_name(arm),
                str(len(spreads[0]["values"])),
                *(show_spread(spread["mean"], spread["std"]) for spread in spreads),
                show_spread(delta["mean"], delta["std"]),
                MISSING if parameters is None else f"{parameters:,.0f}",
                MISSING if saved is None else f"{100 * saved:.1f} %",
                ARMS[arm],
            ]
        )
    return _grid(heads, rows)


def _contrasts(analysis: Analysis) -> str:
    rows = [
        [
            f.judgement.name + (" (primary)" if f.contrast.primary else ""),
            f"{legacy_name(f.contrast.treatment)} vs {legacy_name(f.contrast.control)}, {f.contrast.kind}",
            show_judgement(f.judgement),
            f.judgement.reason,
        ]
        for f in analysis.findings
    ]
    return _grid(["contrast", "arms", "result", "reason"], rows)


def _seeds(results: Sequence[SeedResults]) -> str:
    return _grid(["seed", "status", "reason"], [[str(r.seed), r.status, r.reason or ""] for r in results])


def _grid(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *([inline(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
