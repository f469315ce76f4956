"""Stage `measure`: a timing session of two arms, each block of runs a chunk."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from nullarm.bench.blocks import judged
from nullarm.bench.instruments import instruments
from nullarm.bench.runs import Run, run_table, runs_of
from nullarm.bench.session import Session
from nullarm.bench.settings import BenchSettings
from nullarm.protocols.base import CellContext, CellResult
from nullarm.protocols.low_rank.cells.reading import device
from nullarm.protocols.low_rank.speculation.result import Speculation, speculation_of
from nullarm.protocols.low_rank.speculation.session import predictions
from nullarm.protocols.low_rank.tables import FACTORS, RUNS, SPECULATION
from nullarm.protocols.low_rank.timed_arm import TimedArm
from nullarm.protocols.low_rank.timing import Resident, Subjects, runner
from nullarm.stats.throughput import block_scores
from nullarm.store.tables import BLOCKS


def run(context: CellContext) -> CellResult:
    """Hold the session, or go on with it.

    Raises:
        Preempted: Asked to stop between two blocks.
        ModelError: The model is missing or unreadable, or another one than the factors were made from.
        UsageError: The prompt with what is written after it is longer than the model's context.
    """
    settings = BenchSettings.model_validate(context.cell.parameters["bench"])
    done, counts = _committed(context)
    timed = runner(_subjects(context, settings))
    with instruments(torch.device(device()), ours=settings.processes) as looking:
        session = Session(settings, timed, looking, rng=np.random.default_rng(context.cell.seed))
        for runs in session.blocks(done, should_stop=context.should_stop, progress=context.progress):
            found = timed.counted(runs) if isinstance(timed, Resident) else {}
            context.writer.json_chunk(_key(len(done)), partial(_chunk, runs, found))
            done += runs
            counts |= found
    context.writer.table_artefact(RUNS, run_table(done))
    context.writer.table_artefact(BLOCKS, _blocks(done))
    if counts:
        plain = _arm(context, "control").as_loaded
        context.writer.json_artefact(SPECULATION, predictions(done, counts, plain=plain))
    return CellResult({})  # whatever is counted here, no two sessions agree in it


def _chunk(runs: list[Run], counts: dict[int, Speculation]) -> dict[str, Any]:
    """A block and what it counted in one chunk, so that a kill never parts them."""
    return {
        "runs": [asdict(run) for run in runs],
        "counts": [{"run": number, **asdict(counted)} for number, counted in counts.items()],
    }


def _committed(context: CellContext) -> tuple[list[Run], dict[int, Speculation]]:
    """The runs of earlier attempts, and what they counted, by number of the run."""
    done: list[Run] = []
    counts: dict[int, Speculation] = {}
    while context.writer.has_chunk(_key(len(done))):
        found = context.writer.json_chunk(_key(len(done)), dict)
        done += runs_of(pa.Table.from_pylist(found["runs"]))
        counts |= {row["run"]: speculation_of(row) for row in found["counts"]}
    return done, counts


def _key(runs_before: int) -> str:
    return f"runs-{runs_before:05d}"


def _subjects(context: CellContext, settings: BenchSettings) -> Subjects:
    return Subjects(
        {role: _arm(context, role) for role in ("treatment", "control")}, dtype=context.cell.parameters["dtype"],
        device=device(), settings=settings, seed=context.cell.seed,
    )  # fmt: skip


def _arm(context: CellContext, role: str) -> TimedArm:
    factors = context.needs[role].artefact(FACTORS) if role in context.needs else None
    return TimedArm(context.cell.settings["model"], factors, context.cell.parameters["speculation"].get(role))


def _blocks(runs: list[Run]) -> pa.Table:
    """The blocks that may enter a verdict; one of `blocked`, whose runs are judged unpaired."""
    speeds: dict[str, dict[str, list[float]]] = {"treatment": {}, "control": {}}
    for run in judged(runs):
        if run.phase == "contrast":
            speeds[run.arm].setdefault(f"block {run.block}", []).append(run.tokens_per_s)
    names = list(speeds["control"])
    scores = {
        arm: block_scores([mine[name] for name in names])[:, 0] if names else np.empty(0)
        for arm, mine in speeds.items()
    }
    return pa.table({"item": pa.array(names, pa.string()), **scores})
