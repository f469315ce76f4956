"""The reason for a verdict: one sentence in plain words, with the numbers."""

from __future__ import annotations

from nullarm.stats.verdict import Evidence, PValues, Verdict


def reason(evidence: Evidence, verdict: Verdict, p: PValues, adjusted: bool) -> str:
    """Why `verdict` follows from `evidence`.

    Args:
        evidence: What the scores say.
        verdict: What was decided.
        p: The p-values that decided, adjusted or not.
        adjusted: Whether they were adjusted for a family.
    """
    if evidence.obstacle is not None:
        return _sentence(evidence.obstacle_reason)
    name = "adjusted p" if adjusted else "p"
    items = f" and {evidence.n_items} items" if evidence.n_items is not None else ""
    text = f"{_claim(evidence, verdict)}: {_effect(evidence, verdict)}, {_grounds(evidence, verdict, p, name)}"
    return _sentence(f"{text}, over {evidence.n_seeds} {evidence.unit}{items}{_outlook(evidence, verdict)}")


def _claim(evidence: Evidence, verdict: Verdict) -> str:
    margin = f"{evidence.margin:g}"
    if verdict is Verdict.EQUIVALENT:
        return f"the difference lies inside ±{margin}"
    if evidence.question == "non_inferiority":
        return {
            Verdict.CONFIRMED: f"treated is not worse than its reference by {margin}",
            Verdict.HARMFUL: f"treated is worse than its reference by more than {margin}",
        }.get(verdict, f"that treated is not worse than its reference by {margin} is not shown")
    return {
        Verdict.CONFIRMED: "treated is above its control"
        + (f" by at least the margin {margin}" if evidence.margin > 0 else ""),
        Verdict.DETECTED_BELOW_MARGIN: f"treated is above its control, but by less than the margin {margin}",
        Verdict.HARMFUL: "treated is below its control",
        Verdict.DIFFERENT: "the arms differ",
    }.get(verdict, "neither an effect nor its absence is shown")


def _grounds(evidence: Evidence, verdict: Verdict, p: PValues, name: str) -> str:
    alpha = f"α = {evidence.alpha:g}"
    if verdict is Verdict.HARMFUL:
        return f"{name} = {_number(p.harmful)} in that direction ({alpha})"
    tost = f"TOST {name} = {_number(p.equivalent)} at ±{evidence.margin:g}"
    if verdict is Verdict.EQUIVALENT:
        return f"{tost} ({alpha})"
    claimed = p.different if evidence.question == "difference" else p.superior
    text = f"{name} = {_number(claimed)} ({alpha})"
    if verdict is not Verdict.INCONCLUSIVE:
        return text
    if claimed is not None and claimed < evidence.alpha:
        text = f"{name} = {_number(claimed)} is below {alpha} but the interval does not agree"
    return text if p.equivalent is None else f"{text}, {tost}"


def _outlook(evidence: Evidence, verdict: Verdict) -> str:
    if verdict is not Verdict.INCONCLUSIVE or evidence.mde is None:
        return ""
    least = "clears a margin" if evidence.question == "non_inferiority" else "finds an effect"
    few = f"no number of {evidence.unit} up to 1000 would settle it" + (
        f" at ±{evidence.margin:g}" if evidence.margin > 0 else ""
    )
    needed = few if evidence.n_needed is None else f"about {evidence.n_needed} {evidence.unit} would settle it"
    return f"; this design {least} of {_number(evidence.mde)} with 80 % power, and {needed}"


def _effect(evidence: Evidence, verdict: Verdict) -> str:
    interval = evidence.interval_behind(verdict)
    if evidence.estimate is None or interval is None:
        return "no estimate"
    ends = f"{_number(interval.low)} to {_number(interval.high)}"
    return f"{evidence.estimate:+.4g} ({100 * interval.level:g} % interval {ends})"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3g}"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."
