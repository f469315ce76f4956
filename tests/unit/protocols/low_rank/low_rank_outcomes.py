"""Cells of protocol `low_rank` that ended with known numbers: everything but the models.

store = outcome_store(tmp_path / "study")
finish_all(store)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import exp, log
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from low_rank_studies import BENCH, COMPRESS, SPECULATE, laid, low_rank_study, timing

from nullarm.bench.blocks import judged
from nullarm.bench.runs import Phase, Run, State, run_table
from nullarm.protocols.low_rank.tables import COMPRESS as COMPRESSION
from nullarm.protocols.low_rank.tables import COSTS, EVALUATE, ITEMS, MEASURE, RUNS, TREATMENT
from nullarm.protocols.low_rank.tables import SPECULATE as SPECULATION
from nullarm.protocols.low_rank.tables import SPECULATION as SPECULATION_TIMED
from nullarm.store.cell import Failure, write_failure
from nullarm.store.lease import Leases
from nullarm.store.record import Outcome
from nullarm.store.study_store import StudyStore
from nullarm.store.tables import BLOCKS
from nullarm.study.plan import Cell
from support.rehearsals import writer_of

MCR = {**COMPRESS, "allocation": {"kind": "mcr"}}
NLL = {"baseline": 1.0, "compress": 1.125, "mcr": 1.25, "spec": 1.0}
"""Nats a token, by arm."""
BYTES = {"baseline": 1000, "compress": 600, "mcr": 600, "spec": 1000}
WEIGHTS = {"baseline": "a" * 64, "compress": "b" * 64, "mcr": "c" * 64, "spec": "a" * 64}
PROVENANCE = {"python": "3.11.7", "packages": {"torch": "2.13.0"}, "system": "Linux", "host": "vm", "gpus": []}
SPECULATED = {
    "prompts": 3, "prompts_equal_to_greedy": 3, "acceptance": 0.75, "alpha": 0.875, "tokens_per_round": 3.25,
    "drafted_tokens": 20, "verifier_tokens": 7,
}  # fmt: skip
TIMED = {
    "runs": 20, "draft_length": 4, "rounds": 9, "proposed": [9, 9, 9, 8], "judged": [9, 6, 5, 4],
    "accepted": [6, 5, 4, 3], "alpha": 0.75, "tokens_per_round": 3.0, "cost_ratio": 0.25, "predicted_speed_up": 1.375,
}  # fmt: skip
SPECULATION_COSTS = {"cost_ratio": 0.5, "predicted_speed_up": 1.125}


def outcome_store(
    root: Path, *, seeds: Sequence[int] = (0,), smoke: bool = False, rerun: str | None = "rerun"
) -> StudyStore:
    """Four arms, three timed contrasts, the last of which is the null re-run; no cell begun."""
    asked = low_rank_study(
        {"mcr": MCR, "spec": {"speculation": {**SPECULATE["speculation"], "drafter": "compress"}}},
        (timing("compress", "baseline"), timing("spec", "baseline", "spec_speed"), timing("mcr", "compress", "rerun")),
        rerun=rerun, bench={**BENCH, "blocks": 10, "again_blocks": 4, "slowed_blocks": 3},
    )  # fmt: skip
    return laid(root, asked.model_copy(update={"seeds": tuple(seeds), "smoke": smoke}))


def session(effect: float = 0.0, *, again: float = 0.0, sd: float = 0.001, seed: int = 0) -> list[Run]:
    """A run table: 10 blocks of the contrast, 4 of A/A, 3 of the control slowed by 5 %, all clean, as log effects."""
    rng = np.random.default_rng(seed)
    phases: list[tuple[Phase, int, float]] = [("contrast", 10, effect), ("again", 4, again), ("slowed", 3, -log(1.05))]
    runs: list[Run] = []
    for phase, blocks, shift in phases:
        for block in range(blocks):
            for treated in (True, False, False, True):
                speed = exp(log(40) + shift * treated + sd * rng.normal())
                runs.append(_run(len(runs), phase, block, treated, speed))
    return runs


def _run(number: int, phase: Phase, block: int, treated: bool, speed: float) -> Run:
    return Run(
        run=number, phase=phase, block=block, attempt=1, arm="treatment" if treated else "control", prefill_s=0.25,
        decode_s=1.0, tokens_per_s=speed, tokens=64, state=State.CLEAN, reasons="", gemm_before=0.01, gemm_after=0.01,
        copy_before=0.01, copy_after=0.01, foreign_cpus=0.0, foreign_gpu_processes=None, sm_clock_mhz=None,
        throttle=None, temperature_c=None, power_w=None, started_s=2.0 * number,
    )  # fmt: skip


def tried_again(runs: Sequence[Run], block: int, attempts: int) -> list[Run]:
    """The table with a block of the contrast contaminated so many times before it was clean."""
    mine = [run for run in runs if (run.phase, run.block) == ("contrast", block)]
    made = list(runs)
    for attempt in range(2, attempts + 2):
        made += [replace(run, run=len(made) + i, attempt=attempt) for i, run in enumerate(mine)]
    dirty = {"state": State.CONTAMINATED, "reasons": "foreign CPU load: 1.2 cores"}
    return [
        replace(run, **dirty) if (run.phase, run.block) == ("contrast", block) and run.attempt <= attempts else run  # type: ignore[arg-type]
        for run in made
    ]


def finish_all(
    store: StudyStore, sessions: Mapping[str, Sequence[Run]] | None = None, *, but: Sequence[str] = (), **more: Any
) -> None:
    """Finish every cell but those of the arms and contrasts in `but`; sessions by contrast."""
    for cell in store.plan:
        if cell.arm not in but and cell.slice not in but:
            finish(store, cell, (sessions or {}).get(str(cell.slice)), **more)


def finish(
    store: StudyStore,
    cell: Cell,
    runs: Sequence[Run] | None = None,
    *,
    nll: Mapping[str, float] = NLL,
    weights: Mapping[str, str] = WEIGHTS,
    printed: str = "chunk 0\n",
    provenance: Mapping[str, Any] = PROVENANCE,
    outcome: Outcome = "ok",
    reason: str | None = None,
) -> None:
    """Write the artefacts of one cell and commit it."""
    writer, arm = writer_of(store, cell), str(cell.arm)
    metrics: dict[str, float | int | None] = {}
    if cell.stage == EVALUATE:
        writer.table_artefact(ITEMS, _items(nll[arm]))
        treatment = {"weights": weights[arm], "logits": "d" * 64}
        writer.json_artefact(TREATMENT, {**treatment, "bytes": 5000, "slot_bytes": BYTES[arm]})
        metrics = {f"{unit}_perplexity": exp(nll[arm]) for unit in ("token", "word", "byte")}
        metrics |= {"bytes": 5000, "slot_bytes": BYTES[arm], "peak_memory_bytes": None}
    elif cell.stage == COMPRESSION:
        metrics = {"bytes": BYTES[arm], "groups": 3}
    elif cell.stage == SPECULATION:
        metrics = dict(SPECULATED)
        writer.json_artefact(COSTS, SPECULATION_COSTS)
    elif cell.stage == MEASURE:
        told = list(runs or session())
        writer.table_artefact(RUNS, run_table(told))
        writer.table_artefact(BLOCKS, _blocks(told))
        if cell.parameters["speculation"]:
            writer.json_artefact(SPECULATION_TIMED, {"treatment": TIMED})
    writer.paths.log.write_text(printed, encoding="utf-8")
    writer.commit(metrics, outcome=outcome, reason=reason, seconds=1.0, provenance=provenance)
    assert store.observe(cell.id) is not None


def fail(store: StudyStore, cell: Cell, message: str = "no weights") -> None:
    """End a cell as one that raised `ModelError`."""
    leases = Leases()
    lease = store.claim(cell, leases)
    assert lease is not None, "somebody holds the cell"
    write_failure(store.paths.cell(cell.id), Failure(lease.attempt, "ModelError", message, 10))
    leases.release_all()
    store.observe(cell.id)


def _items(nll: float) -> pa.Table:
    """Twelve windows of ten tokens in six documents, whose mean is `nll`."""
    offsets = [0.02 * ((i * 5) % 12 - 5.5) for i in range(12)]
    return pa.table(
        {
            "item": [f"doc{i // 2}/{i % 2}" for i in range(12)],
            "cluster": [f"doc{i // 2}" for i in range(12)],
            **{unit: [10] * 12 for unit in ("tokens", "words", "bytes")},
            "nll": [10 * (nll + offset) for offset in offsets],
            "log_likelihood": [-(nll + offset * (1 + 0.1 * nll)) for offset in offsets],
        }
    )


def _blocks(runs: Sequence[Run]) -> pa.Table:
    blocks: dict[int, dict[str, list[float]]] = {}
    for run in judged(runs):
        if run.phase == "contrast":
            blocks.setdefault(run.block, {}).setdefault(run.arm, []).append(log(run.tokens_per_s))
    scores = {arm: [float(np.mean(one[arm])) for one in blocks.values()] for arm in ("treatment", "control")}
    items = {"item": [f"block {n}" for n in range(len(blocks))]}
    return pa.table(items | {arm: pa.array(column, pa.float64()) for arm, column in scores.items()})
