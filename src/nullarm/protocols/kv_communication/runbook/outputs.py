"""What a run ends with: files under the names of the source's runbook, and the closing block."""

from __future__ import annotations

from textwrap import shorten

from nullarm.analysis import Analysis
from nullarm.protocols.findings import verdict_line
from nullarm.protocols.kv_communication.budget.arms import ArmResult, arm_results, datasets
from nullarm.protocols.kv_communication.budget.curve import write_curve
from nullarm.protocols.kv_communication.budget.evaluations import evaluations, usable
from nullarm.protocols.kv_communication.budget.points import curve_points
from nullarm.protocols.kv_communication.runbook.state import state_of
from nullarm.protocols.kv_communication.runbook.tree import write_evaluation, write_tree
from nullarm.protocols.kv_communication.tables import EVALUATE, TRAIN_FUSER
from nullarm.store.study_store import StudyStore
from nullarm.study.plan import Cell


def write_cell(store: StudyStore, cell: Cell) -> None:
    """What a cell that has just ended fills: of an evaluation its files, of others nothing.

    Raises:
        StorageError: The disk is full, read-only or gone.
    """
    if cell.stage == EVALUATE:
        write_evaluation(store, cell)


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
    lines += [*_closed(store), *_unfinished(store)]
    lines += ["", "VERDICTS", *map(verdict_line, analysis.findings), ""]
    return "\n".join([*lines, *(f"wrote {path}" for path in files), f"runs: {len(runs)} under {store.paths.output}"])


def _line(result: ArmResult, width: int) -> str:
    interval = "[{:.3f}, {:.3f}]".format(*result.ends) if result.ends else "no interval"
    return f"  {result.arm:<{width}}  {result.accuracy:.3f}  {interval}  {result.wire_bytes:>12,.0f}  n = {result.n}"


def _closed(store: StudyStore) -> list[str]:
    """Fusers that were trained and came out with every gate closed: through them nothing is sent."""
    trained = [(cell, store.finished(cell.id)) for cell in store.plan if cell.stage == TRAIN_FUSER]
    return [
        f"fuser {cell.slice}, seed {cell.seed}: all gates are closed, so nothing is sent through it"
        for cell, finished in trained
        if finished and finished.record.metrics.get("open_streams") == 0
    ]


def _unfinished(store: StudyStore) -> list[str]:
    states = {cell.label: state_of(store, cell) for cell in store.plan if cell.stage == EVALUATE}
    left = [label for label, (status, _) in states.items() if status not in ("complete", "failed")]
    return [
        *(f"{label}: FAILED ({shorten(str(reason), 160, placeholder=' …')})"
          for label, (status, reason) in states.items() if status == "failed"),
        *([f"not evaluated yet: {', '.join(left)}"] if left else []),
    ]  # fmt: skip
