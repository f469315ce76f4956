"""The runbook's closing block: its three outcomes, each only when the verdicts allow it, and the other ways to end."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from nullarm.analysis import Analysis, Finding
from nullarm.protocols.rank_mechanism.aggregate import arm_spreads, finding_of
from nullarm.protocols.rank_mechanism.arms import AUDITED, PROBE, SHUFFLED
from nullarm.protocols.rank_mechanism.seed_results import SeedResults, legacy_name
from nullarm.report.numbers import effect_decimals, show_effect, show_interval, show_p, show_percent
from nullarm.stats.verdict import Judgement, Verdict
from nullarm.study.spec import Study

WIDTH = 100
_OUTCOMES = {
    Verdict.CONFIRMED: "HYPOTHESIS CONFIRMED: audit-guided ranks provide real benefit beyond heterogeneity",
    Verdict.DETECTED_BELOW_MARGIN: "PARTIAL SUCCESS: audit-guided placement helps, but by less than the margin",
    Verdict.DIFFERENT: "NO CONCLUSION: the arms differ, and no direction was declared",
    Verdict.HARMFUL: "NOT SUPPORTED: audit-guided placement does worse than the same ranks shuffled",
    Verdict.INCONCLUSIVE: "INCONCLUSIVE: neither a mechanism benefit nor its absence is shown",
    Verdict.NO_OP: "NO CONCLUSION: the arms scored the same on every item, so the treatment changed nothing",
    Verdict.INVALID: "NO CONCLUSION: the results are not valid for a verdict",
    Verdict.INSUFFICIENT_DATA: "NO CONCLUSION: there are too few data for a verdict",
}
"""What the verdict on the mechanism says. Of a null, or of an open question, compression says more."""
_MEANING = {
    Verdict.CONFIRMED: "✓ PASS: audit-guided placement provides real benefit",
    Verdict.DETECTED_BELOW_MARGIN: "✓ PASS: a benefit was detected, below the margin that was declared to matter",
    Verdict.EQUIVALENT: "✗ FAIL: no benefit as large as the margin; the null is shown, not just unrefuted",
    Verdict.HARMFUL: "✗ FAIL: audit-guided placement does worse",
    Verdict.INCONCLUSIVE: "? OPEN: neither a benefit nor its absence is shown",
}


def closing_block(study: Study, results: Sequence[SeedResults], analysis: Analysis) -> str:
    """OVERALL CONCLUSION, PERFORMANCE SUMMARY and MECHANISM BENEFIT TEST, as the runbook prints them."""
    mechanism = finding_of(analysis, AUDITED, SHUFFLED)
    lines = ["OVERALL CONCLUSION", *_wrapped(overall_conclusion(study, results, analysis))]
    if analysis.exploratory:
        lines += _wrapped("EXPLORATORY: the analysis was changed after cells had run")
    lines += ["", f"PERFORMANCE SUMMARY ({_measured(study)} on test, mean ± sd over seeds)"]
    lines += performance_lines(study, results)
    lines += ["", "MECHANISM BENEFIT TEST", *mechanism_lines(mechanism)]
    others = [f for f in analysis.findings if f is not mechanism]
    if others:
        lines += [
            "",
            "OTHER DECLARED CONTRASTS",
            *(line for f in others for line in _wrapped(f"{_arms(f)}: {show_judgement(f.judgement)}")),
        ]
    return "\n".join(lines)


def overall_conclusion(study: Study, results: Sequence[SeedResults], analysis: Analysis) -> str:
    """One sentence: the runbook's outcome that the verdicts allow, or why there is none."""
    mechanism = finding_of(analysis, AUDITED, SHUFFLED)
    judged = mechanism is not None and mechanism.judgement.estimate is not None  # on the seeds that are complete
    stopped = next((r for r in results if r.status == "UNDERTRAINED"), None)
    if stopped is not None and not judged:
        why = (stopped.reason or "the probe did not pass its gate").removeprefix("UNDERTRAINED: ")
        return f"UNDERTRAINED: at seed {stopped.seed} {why}, so nothing that follows it would mean anything"
    if study.smoke:
        return "SMOKE RUN: the machinery ran; a smoke result never enters a verdict"
    if mechanism is None:
        primary = analysis.primary.judgement
        return f"NO MECHANISM TEST was declared; contrast {primary.name} is {primary.verdict}: {primary.reason}"
    return _outcome(mechanism.judgement, _compression_works(analysis))


def _outcome(judged: Judgement, compression_works: bool) -> str:
    if judged.verdict is Verdict.EQUIVALENT:
        start = "PARTIAL SUCCESS: compression works, but" if compression_works else "NOT SUPPORTED:"
        return f"{start} placement makes no difference (shown to be inside ±{judged.margin:g})"
    if judged.verdict is Verdict.INCONCLUSIVE and compression_works:
        return "PARTIAL SUCCESS: compression works, but no clear mechanism benefit (neither shown nor ruled out)"
    return _OUTCOMES[judged.verdict]


def performance_lines(study: Study, results: Sequence[SeedResults]) -> list[str]:
    """One line per arm: `per_layer           : 0.675 ± 0.008`; both measurements where the metric is not accuracy."""
    width = max(len(legacy_name(arm)) for arm in study.arms)
    lines = []
    for arm in study.arms:
        spreads = arm_spreads(study, results, arm).values()
        shown = "   ".join(show_spread(spread["mean"], spread["std"]) for spread in spreads)
        n = min(len(spread["values"]) for spread in spreads)
        short = f"   ({n} of {len(results)} seeds)" if n < len(results) else ""
        lines.append(f"{legacy_name(arm):<{width}} : {shown}{short}")
    return lines


def mechanism_lines(finding: Finding | None) -> list[str]:
    """The mechanism test: effect, verdict, and the reason in one sentence."""
    if finding is None:
        return ["not declared in this study"]
    judged = finding.judgement
    meaning = _MEANING.get(judged.verdict, "? NO VERDICT")
    return [
        f"{_arms(finding)}: {show_numbers(judged)}",
        f"{meaning} ({judged.verdict.value})",
        *_wrapped(judged.reason),
    ]


def show_spread(mean: float | None, sd: float | None) -> str:
    """`0.675 ± 0.008`; a dash for what is missing."""
    return f"{'—' if mean is None else f'{mean:.3f}'} ± {'—' if sd is None else f'{sd:.3f}'}"


def show_judgement(judged: Judgement) -> str:
    """`+0.015, 90 % interval [+0.001, +0.029], p = 0.012 (adjusted 0.024), 3 seeds: CONFIRMED`."""
    return judged.verdict.value if judged.estimate is None else f"{show_numbers(judged)}: {judged.verdict.value}"


def show_numbers(judged: Judgement) -> str:
    """`+0.015, 90 % interval [+0.001, +0.029], p = 0.012 (adjusted 0.024), 3 seeds`, or that there is no estimate."""
    if judged.estimate is None:
        return "no estimate"
    interval = (judged.interval.low, judged.interval.high) if judged.interval else None
    decimals = max(3, effect_decimals(interval, judged.estimate))
    parts = [show_effect(judged.estimate, decimals)]
    if judged.interval:
        parts.append(f"{show_percent(judged.interval.level)} interval {show_interval(interval, decimals)}")
    if judged.verdict is Verdict.HARMFUL and judged.p_harm is not None:
        parts.append(f"p of harm = {show_p(judged.p_harm)}")
    elif judged.p is not None:
        adjusted = "" if judged.p_adjusted is None else f" (adjusted {show_p(judged.p_adjusted)})"
        parts.append(f"p = {show_p(judged.p)}{adjusted}")
    if judged.n_seeds is not None:
        parts.append(f"{judged.n_seeds} seeds")
    return ", ".join(parts).replace("\u00a0", " ")


def _arms(finding: Finding) -> str:
    return f"{legacy_name(finding.contrast.treatment)} vs {legacy_name(finding.contrast.control)}"


def _compression_works(analysis: Analysis) -> bool:
    compression = finding_of(analysis, AUDITED, PROBE)
    if compression is None:
        return False
    return compression.judgement.verdict in (Verdict.CONFIRMED, Verdict.DETECTED_BELOW_MARGIN, Verdict.EQUIVALENT)


def _measured(study: Study) -> str:
    return " and ".join(dict.fromkeys(("accuracy", study.analysis.metric)))


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, break_long_words=False, break_on_hyphens=False)
