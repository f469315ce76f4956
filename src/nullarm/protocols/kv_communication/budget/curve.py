"""The budget curve: bytes against accuracy, as `budget_curve.csv` and one picture for each data set."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path

from nullarm.protocols.kv_communication.budget.evaluations import TOTAL, TRANSFER, Evaluation
from nullarm.protocols.kv_communication.budget.figure import draw
from nullarm.protocols.kv_communication.budget.points import Point
from nullarm.protocols.kv_communication.budget.tags import run_directory, run_tag
from nullarm.store.atomic import make_directory, write_bytes

FILE = "budget_curve.csv"
MIB = 1 << 20


@dataclass(frozen=True)
class Row:
    """One line of the table: the source's columns, then ours."""

    run_tag: str
    dataset: str
    kv_quant_scheme: str
    kv_cache_proportion: float | None
    kv_cache_order_mode: str
    base_model: str
    avg_input_length: float
    bytes_per_sequence: float
    """Measured mean of what crossed the wire; scaled where a length of the input was assumed."""
    bytes_per_sequence_mib: float
    accuracy: float
    run_root: str
    measured_bytes_mean: float
    """Mean `len(blob)` of the messages, whatever was assumed."""
    formula_bytes: float | None
    accuracy_low: float | None
    accuracy_high: float | None
    n: int
    pareto_membership: float | None
    seed: int
    arm: str
    transfer_s: float
    total_s: float


def rows(points: Iterable[Point], assumed_length: int | None = None) -> list[Row]:
    """One row per arm, data set and seed."""
    return [_row(point, e, assumed_length) for point in points for e in point.result.evaluations]


def write_curve(
    points: Sequence[Point], directory: Path, *, assumed_length: int | None = None, plot: bool = True
) -> list[Path]:
    """Write the table and, when asked to, a picture for each data set.

    Args:
        points: Of `curve_points`.
        directory: Where to; made when it is not there.
        assumed_length: `bytes_per_sequence` for prompts of this many tokens instead of those that were measured.
        plot: Whether to draw.

    Returns:
        The files.

    Raises:
        StorageError: The disk is full, read-only or gone.
    """
    make_directory(directory)
    files = [directory / FILE]
    write_bytes(files[0], _csv(rows(points, assumed_length)))
    if plot:
        for dataset in dict.fromkeys(point.result.dataset for point in points):
            path = directory / f"budget_curve_{dataset}.png"
            write_bytes(path, draw(dataset, [p for p in points if p.result.dataset == dataset]))
            files.append(path)
    return files


def _row(point: Point, e: Evaluation, assumed_length: int | None) -> Row:
    alone = replace(point.result, evaluations=(e,))
    sent = alone.wire_bytes if assumed_length is None else alone.bytes_per_token * assumed_length
    low, high = alone.ends or (None, None)
    return Row(
        run_tag=run_tag(e.cell),
        dataset=e.dataset,
        kv_quant_scheme=e.channel["codec"] if e.fused else "",
        kv_cache_proportion=e.channel["proportion"] if e.fused else None,
        kv_cache_order_mode=e.channel["order"] if e.fused else "",
        base_model=e.cell.settings["receiver"],
        avg_input_length=e.mean("input_tokens"),
        bytes_per_sequence=sent,
        bytes_per_sequence_mib=sent / MIB,
        accuracy=alone.accuracy,
        run_root=str(e.root / "output" / run_directory(e.cell)),
        measured_bytes_mean=e.mean("message_bytes"),
        formula_bytes=e.formula_bytes,
        accuracy_low=low,
        accuracy_high=high,
        n=len(e.items),
        pareto_membership=point.membership,
        seed=e.cell.seed,
        arm=e.arm,
        transfer_s=e.seconds[TRANSFER],
        total_s=e.seconds[TOTAL],
    )


def _csv(lines: Iterable[Row]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([field.name for field in fields(Row)])
    writer.writerows(astuple(row) for row in lines)
    return text.getvalue().encode()
