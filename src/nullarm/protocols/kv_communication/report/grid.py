"""Paired differences of every arm, against unquantised communication and against the receiver alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from nullarm.protocols.kv_communication.budget.comparison import Compared, Comparison, comparisons
from nullarm.protocols.kv_communication.budget.evaluations import Evaluation
from nullarm.report import Block, IntervalPlot, IntervalRow, Note, Table, Value
from nullarm.report.numbers import show_percent
from nullarm.study.spec import Analysis

COLUMNS = (
    "arm",
    "codec",
    "share",
    "order",
    "difference",
    "low",
    "high",
    "p",
    "Holm p",
    "detectable",
    "TOST p",
    "verdict",
)


def grid(found: Sequence[Evaluation], analysis: Analysis) -> Iterator[Block]:
    """A figure and a table for each data set and reference."""
    done = comparisons(found, analysis)
    if found and not done:
        yield Note(
            "Neither an unquantised cache nor the receiver alone was evaluated, so nothing is compared.", "warning"
        )
    for comparison in done:
        if comparison.rows:
            yield _figure(comparison, analysis)
            yield _table(comparison, analysis)


def _title(comparison: Comparison) -> str:
    return f"{comparison.dataset}: accuracy minus that of {comparison.reference.arm}"


def _figure(comparison: Comparison, analysis: Analysis) -> IntervalPlot:
    rows = tuple(
        IntervalRow(
            label=row.result.arm, estimate=row.difference, interval=row.ends, verdict=row.judgement.verdict.value,
            cells=_cells(row, comparison),
        )
        for row in comparison.rows
    )  # fmt: skip
    return IntervalPlot(_title(comparison), rows, "difference in accuracy", analysis.margin, 1 - 2 * analysis.alpha)


def _table(comparison: Comparison, analysis: Analysis) -> Table:
    return Table(
        title=_title(comparison),
        columns=(*COLUMNS, *(["McNemar p"] if comparison.unit == "clusters" else [])),
        rows=tuple(_row(row, comparison.unit) for row in comparison.rows),
        cells=tuple(row.result.cells for row in comparison.rows),
        caption=_caption(comparison, analysis),
    )


def _caption(comparison: Comparison, analysis: Analysis) -> str:
    level = show_percent(1 - 2 * analysis.alpha)
    if comparison.unit == "clusters":
        how = (
            "Items come in clusters, the units here: p is that of a two-sided t test over clusters. McNemar's test, in "
        )
        how += "the last column, takes the items as independent."
    else:
        how = "p is McNemar's, exact, or that of a t test over items where there are several seeds; two-sided."
    return (
        f"Paired by {comparison.unit}; {level} bootstrap intervals. {how} Holm runs over all arms of this table. "
        f"Detectable: the difference found with 80 % power by one test at α = {analysis.alpha:g}, unadjusted. TOST p: "
        f"of the claim that the difference lies inside ±{analysis.margin:g}, unadjusted. Verdicts rest on one-sided t "
        f"tests over {comparison.unit}, adjusted by a Holm of their own. EQUIVALENT: the arm costs no accuracy that "
        "matters; NO_OP: no item changed."
    )


def _row(row: Compared, unit: str) -> tuple[Value, ...]:
    channel, judged = row.result.channel, row.judgement
    fused = row.result.evaluations[0].fused
    low, high = row.ends or (None, None)
    return (
        row.result.arm,
        channel["codec"] if fused else None,
        channel["proportion"] if fused else None,
        channel["order"] if fused and channel["proportion"] < 1 else None,
        row.difference, low, high, row.p, row.p_adjusted, judged.mde, judged.p_equivalence, judged.verdict.value,
        *([row.mcnemar.p if row.mcnemar else None] if unit == "clusters" else []),
    )  # fmt: skip


def _cells(row: Compared, comparison: Comparison) -> tuple[str, ...]:
    return (*row.result.cells, *comparison.reference.cells)
