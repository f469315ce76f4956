"""Files under the names of the source's runbook, and the block that a run ends with."""

from __future__ import annotations

from pathlib import Path
from textwrap import shorten

from nullarm.analysis import Analysis, Finding
from nullarm.protocols.kv_communication.budget.arms import ArmResult, arm_results, datasets
from nullarm.protocols.kv_communication.budget.curve import curve_points, write_curve
from nullarm.protocols.kv_communication.budget.evaluations import evaluations, usable
from nullarm.protocols.kv_communication.runbook.tags import run_directory
from nullarm.protocols.kv_communication.runbook.tree import reason_of, status_of, write_run
from nullarm.protocols.kv_communication.tables import EVALUATE
from nullarm.store.study_store import StudyStore
from nullarm.study.plan import Cell


def write_cell(store: StudyStore, cell: Cell) -> None:
    """The run that an evaluation which has just ended belongs to."""
    if cell.stage == EVALUATE:
        write_run(store, run_directory(cell))


def write_tree(store: StudyStore) -> list[Path]:
    """Every run of the plan, also those that have not begun; their directories."""
    runs = dict.fromkeys(run_directory(cell) for cell in store.plan if cell.stage == EVALUATE)
    return [write_run(store, run) for run in runs]


def write_outputs(store: StudyStore, analysis: Analysis) -> str:
    """The whole tree, the budget curves, and the closing block.

    Raises:
        IntegrityError: An artefact is not what its hash says.
        StorageError: The disk is full, read-only or gone.
    """
    runs = write_tree(store)
    found = usable(evaluations(store))
    files = write_curve(curve_points(found, store.lock.study.analysis.seed), store.paths.output)
    lines = ["KV COMMUNICATION"]
    for dataset in datasets(found):
        results = arm_results(found, dataset)
        width = max(len(result.arm) for result in results)
        lines += ["", f"{dataset} (accuracy, 95 % interval, bytes an item)", *(_line(r, width) for r in results)]
    lines += _unfinished(store)
    lines += ["", "VERDICTS", *map(_verdict, analysis.findings), ""]
    return "\n".join([*lines, *(f"wrote {path}" for path in files), f"runs: {len(runs)} under {store.paths.output}"])


def _line(result: ArmResult, width: int) -> str:
    interval = "[{:.3f}, {:.3f}]".format(*result.ends) if result.ends else "no interval"
    return f"  {result.arm:<{width}}  {result.accuracy:.3f}  {interval}  {result.wire_bytes:>12,.0f}  n = {result.n}"


def _unfinished(store: StudyStore) -> list[str]:
    cells = [cell for cell in store.plan if cell.stage == EVALUATE]
    failed = [cell for cell in cells if status_of(store, cell) == "failed"]
    left = [cell.label for cell in cells if status_of(store, cell) in ("running", "prep_only")]
    told = [f"{c.label}: FAILED ({shorten(str(reason_of(store, c)), 160, placeholder=' …')})" for c in failed]
    return told + ([f"not evaluated yet: {', '.join(left)}"] if left else [])


def _verdict(finding: Finding) -> str:
    contrast, judged = finding.contrast, finding.judgement
    return f"{judged.name} ({contrast.treatment} against {contrast.control}): {judged.verdict}. {judged.reason}"
