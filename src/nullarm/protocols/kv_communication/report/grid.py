"""Paired differences of every arm, against unquantised communication and against the receiver alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from nullarm.protocols.kv_communication.budget.comparison import Compared, Comparison, comparisons
from nullarm.protocols.kv_communication.budget.evaluations import Evaluation
from nullarm.report import Block, IntervalPlot, IntervalRow, Note, Table, Value
from nullarm.report.numbers import show, show_percent
from nullarm.stats.verdict import Judgement, Verdict
from nullarm.study.spec import Analysis


def grid(found: Sequence[Evaluation], analysis: Analysis, obstacle: str | None) -> Iterator[Block]:
    """For each data set and reference a figure, a table, and why each verdict was given.

    Args:
        found: Usable evaluations.
        analysis: As declared.
        obstacle: Why no verdict may be given, where that is so.
    """
    done = comparisons(found, analysis, obstacle)
    if found and not done:
        yield Note(
            "Neither an unquantised cache nor the receiver alone was evaluated, so nothing is compared.", "warning"
        )
    if done and obstacle is not None:
        yield Note(
            f"No verdict on any arm: {obstacle.rstrip('.')}. Differences are shown, intervals are not.", "warning"
        )
    for comparison in done:
        if (cheapest := comparison.cheapest_equivalent) is not None:
            yield Note(
                f"{comparison.dataset}: of the caches that are EQUIVALENT to {comparison.against}, "
                f"{cheapest.result.arm} takes the fewest bytes: {show(cheapest.result.wire_bytes)} an item, instead of "
                f"{show(cheapest.reference.wire_bytes)}."
            )
        yield _figure(comparison, analysis)
        yield _table(comparison, analysis)
        if obstacle is None:
            yield _reasons(comparison, analysis)


def _title(comparison: Comparison) -> str:
    return f"{comparison.dataset}: accuracy minus that of {comparison.against}"


def _figure(comparison: Comparison, analysis: Analysis) -> IntervalPlot:
    rows = tuple(
        IntervalRow(
            label=row.result.arm, estimate=row.difference, interval=row.ends, verdict=row.judgement.verdict.value,
            cells=_cells(row),
        )
        for row in comparison.rows
    )  # fmt: skip
    return IntervalPlot(
        f"{_title(comparison)}, intervals", rows, "difference in accuracy", analysis.margin, 1 - 2 * analysis.alpha
    )


def _table(comparison: Comparison, analysis: Analysis) -> Table:
    columns = _columns(comparison)
    return Table(
        title=_title(comparison),
        columns=tuple(columns),
        rows=tuple(zip(*columns.values(), strict=True)),
        cells=tuple(row.result.cells for row in comparison.rows),
        caption=_caption(comparison, analysis),
    )


def _columns(comparison: Comparison) -> dict[str, list[Value]]:
    """By name, few enough to fit a page."""
    rows = comparison.rows
    judged = [row.judgement for row in rows]
    ends = [row.ends or (None, None) for row in rows]
    return {
        "arm": [row.result.arm for row in rows],
        **({"of accuracies": [row.plain_difference for row in rows]} if comparison.clustered else {}),
        "difference": [row.difference for row in rows],
        "low": [low for low, _ in ends],
        "high": [high for _, high in ends],
        "p": [row.p for row in rows],
        "TOST p": [j.p_adjusted for j in judged],
        "n": [j.n_seeds for j in judged],
        "verdict": [j.verdict.value for j in judged],
    }


def _caption(comparison: Comparison, analysis: Analysis) -> str:
    level = show_percent(1 - 2 * analysis.alpha)
    if comparison.clustered:
        how = (
            "n counts clusters. The difference is the mean of the clusters' means, in which a cluster counts once "
            "whatever its size; “of accuracies” is the difference of the two accuracies above, in which an item does. "
            "p is that of a t test over clusters"
        )
    else:
        how = "n counts items. p is McNemar's, exact, or that of a t test over items where there are several seeds"
    against = "Each arm against the unquantised one by the same fusers. " if len(comparison.references) > 1 else ""
    return (
        f"{against}Paired; {level} bootstrap intervals. {how}; two-sided, unadjusted. TOST p: of the claim that the "
        f"difference lies inside ±{analysis.margin:g}, adjusted by Holm over the arms of this table, as the verdict "
        "is. EQUIVALENT: the arm costs no accuracy that matters; NO_OP: no item changed."
    )


def _reasons(comparison: Comparison, analysis: Analysis) -> Table:
    """Why each verdict was given, what would have been seen, and what would settle what is open."""
    rows = [(row, row.judgement) for row in comparison.rows]
    return Table(
        title=f"{_title(comparison)}, why",
        columns=("arm", "against", "detectable", "n that would settle it", "reason"),
        rows=tuple((row.result.arm, row.reference.arm, j.mde, _needed(j), j.reason) for row, j in rows),
        cells=tuple(_cells(row) for row in comparison.rows),
        caption=f"Detectable: the difference found with 80 % power by one test at α = {analysis.alpha:g}, unadjusted.",
    )


def _needed(judgement: Judgement) -> int | None:
    """Of what is open."""
    return judgement.n_needed if judgement.verdict is Verdict.INCONCLUSIVE else None


def _cells(row: Compared) -> tuple[str, ...]:
    return (*row.result.cells, *row.reference.cells)
