"""Finished cells of protocol `low_rank` with known numbers: everything but the models and the machine.

store = laid(tmp_path / "study", STUDY)
finish_all(store)
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from low_rank_studies import COMPRESS, QKV, SPECULATE, low_rank_study, timing

from nullarm.bench.blocks import judged
from nullarm.bench.runs import Run, run_table
from nullarm.bench.session import Session
from nullarm.bench.settings import BenchSettings
from nullarm.protocols.low_rank.tables import (
    ACCEPTANCE,
    COSTS,
    ERRORS,
    EVALUATE,
    GROUPS,
    HISTORY,
    ITEMS,
    MEASURE,
    RANKS,
    RUNS,
    SINGULAR_VALUES,
    SPECTRA,
    SPECULATION,
    SWEEP,
    TREATMENT,
)
from nullarm.protocols.low_rank.tables import (
    COMPRESS as COMPRESS_STAGE,
)
from nullarm.protocols.low_rank.tables import (
    SPECULATE as SPECULATE_STAGE,
)
from nullarm.store.cell import CellWriter
from nullarm.store.study_store import StudyStore
from nullarm.store.tables import BLOCKS
from nullarm.study.plan import Cell
from support.machines import QUIET, SimulatedMachine, Trouble
from support.rehearsals import writer_of

ARMS: dict[str, Any] = {
    "gauged": {**COMPRESS, "gauge": {}},
    "frozen": {**COMPRESS, "online": {"direction": "frozen", "blocks": 1}},
    "spec": SPECULATE,
    "mcr": {**COMPRESS, "allocation": {"kind": "mcr"}},
    "int8": {"method": {"kind": "round_to_nearest"}, "slots": QKV},
}
BENCH = {"blocks": 6, "again_blocks": 3, "slowed_blocks": 3, "retries": 0, "warmup_max_runs": 1}
SWEPT = {"methods": [{"kind": "svd"}], "slots": ["q", "v"], "keep": [0.75, 0.5], "windows": 2}
STUDY = low_rank_study(
    ARMS, (timing("compress", "baseline"), timing("spec", "baseline", "spec_speed")), bench=BENCH, sweep=SWEPT,
    rerun="speed",
)  # fmt: skip

RISES = {"baseline": 0.0, "spec": 0.0, "compress": 0.25, "gauged": 0.25, "frozen": 0.25, "mcr": 0.5, "int8": 0.125}
"""Nats a token above the baseline's; arms that rise alike run the same weights."""
SLOT_BYTES = {"baseline": 1000, "spec": 1000, "int8": 300}
"""Of the others, 500."""
LEVEL = 1.15
"""Nats a token of the baseline."""
SPEEDS = {"treatment": 50.0, "control": 40.0, "slowed": 40 / 1.05}

Disturbed = Callable[[int], Trouble]


def finish_all(
    store: StudyStore, *, but: Collection[str] = (), rises: Mapping[str, float] = RISES,
    trouble: Disturbed = lambda run: QUIET,
) -> None:  # fmt: skip
    """Finish every cell but those of the stages in `but`."""
    for cell in store.plan:
        if cell.stage not in but:
            finish(store, cell, rises, trouble)


def finish(
    store: StudyStore, cell: Cell, rises: Mapping[str, float] = RISES, trouble: Disturbed = lambda run: QUIET
) -> None:
    """Write the artefacts of one cell, and commit it."""
    writer = writer_of(store, cell)
    if cell.stage == MEASURE:
        metrics = _session(writer, cell, trouble)
    elif cell.stage == EVALUATE:
        metrics = _evaluation(writer, cell, rises[str(cell.arm)])
    else:
        writers = {SPECTRA: _spectra, SWEEP: _sweep, COMPRESS_STAGE: _compression, SPECULATE_STAGE: _speculation}
        metrics = writers[cell.stage](writer, cell)
    writer.commit(metrics, seconds=1.0, provenance={"python": "3.11"})
    assert store.observe(cell.id) is not None


def _evaluation(writer: CellWriter, cell: Cell, rise: float) -> dict[str, Any]:
    """Four documents of two windows of ten tokens each; documents differ by 0.1 nats a token."""
    rows = [
        {"item": f"{document}/{window}", "cluster": str(document), "tokens": 10, "words": 5, "bytes": 40,
         "nll": 10 * (1 + 0.1 * document + rise), "log_likelihood": -(1 + 0.1 * document + rise)}
        for document in range(4)
        for window in range(2)
    ]  # fmt: skip
    writer.table_artefact(ITEMS, pa.Table.from_pylist(rows))
    slot_bytes = SLOT_BYTES.get(str(cell.arm), 500)
    same = f"{int(1000 * RISES[str(cell.arm)]):04d}" * 16
    treatment = {"weights": same, "logits": same, "bytes": 2000, "slot_bytes": slot_bytes}
    writer.json_artefact(TREATMENT, treatment)
    ppl = {
        f"{unit}_perplexity": float(np.exp((LEVEL + rise) * 10 / size))
        for unit, size in {"token": 10, "word": 5, "byte": 40}.items()
    }
    return {**ppl, "bytes": 2000, "slot_bytes": slot_bytes, "peak_memory_bytes": None}


def _compression(writer: CellWriter, cell: Cell) -> dict[str, Any]:
    said = cell.parameters["compression"]
    ranked = said["method"]["kind"] != "round_to_nearest"
    ranks = (8, 24) if said["allocation"]["kind"] == "mcr" else (16, 16)
    rows = [
        {"layer": layer, "slots": "q+k+v", "rank": rank if ranked else None, "break_even": 20 if ranked else None,
         "above_break_even": ranked and rank > 20, "bytes": 100, "dense_bytes": 200, "weight_error": 1 / rank,
         "output_error": 0.5 / rank}
        for layer, rank in enumerate(ranks)
    ]  # fmt: skip
    writer.table_artefact(GROUPS, pa.Table.from_pylist(rows))
    history: dict[str, Any] = {}
    if said["gauge"]:
        history["gauge"] = {"energy": [2.0], "moved": 0.0, "g": [1.0]}
    if said["online"]:
        history["online"] = [
            {"block": block, "layer": layer, "slots": "q+k+v", "rate": 1.0, "drift": 0.1 * block + layer, "turned": 0.0}
            for block in (1, 2)
            for layer in (0, 1)
        ]
    if history:
        writer.json_artefact(HISTORY, history)
    return {"bytes": 200}


def _spectra(writer: CellWriter, cell: Cell) -> dict[str, Any]:
    """σ = 4, 2, 1 and one that is rounding; ranks grow with the layer."""
    values = [4.0, 2.0, 1.0, 1e-9]
    keys = [(layer, slot, metric) for layer in (0, 1) for slot in ("q", "v") for metric in ("weight", "whitened")]
    rows = [
        {"layer": layer, "slot": slot, "metric": metric, "index": index, "singular_value": value}
        for layer, slot, metric in keys
        for index, value in enumerate(values)
    ]
    ranks = [
        {"layer": layer, "slot": slot, "metric": metric, "rows": 4, "columns": 4, "break_even": 2, "r50": 1 + layer,
         "r75": 2, "r90": 2, "r95": 3, "r99": 3, "effective_rank": 2.0, "energy_at_break_even": 0.5}
        for layer, slot, metric in keys
    ]  # fmt: skip
    writer.table_artefact(SINGULAR_VALUES, pa.Table.from_pylist(rows))
    writer.table_artefact(RANKS, pa.Table.from_pylist(ranks))
    return {"matrices": 4}


def _sweep(writer: CellWriter, cell: Cell) -> dict[str, Any]:
    rows = [
        {"layer": layer, "slots": slots, "method": "svd", "rank": rank, "keep": rank / 32,
         "above_break_even": rank > 20, "weight_error": 0.1, "output_error": layer + 1 / rank,
         "delta_nll": 0.01 * layer - 0.005}
        for slots in ("q", "v")
        for layer in (0, 1)
        for rank in (24, 16)
    ]  # fmt: skip
    writer.table_artefact(ERRORS, pa.Table.from_pylist(rows))
    return {"rows": len(rows)}


def _speculation(writer: CellWriter, cell: Cell) -> dict[str, Any]:
    rows = [
        {"prompt": prompt, "position": position, "proposed": 4, "judged": 4 - prompt, "accepted": 3 - position}
        for prompt in (0, 1)
        for position in (1, 2, 3)
    ]
    writer.table_artefact(ACCEPTANCE, pa.Table.from_pylist(rows))
    writer.json_artefact(COSTS, {"cost_ratio": 0.5, "predicted_speed_up": 1.125})
    return {
        "prompts": 3, "prompts_equal_to_greedy": 2, "acceptance": 0.5, "alpha": 0.75, "tokens_per_round": 2.5,
        "drafted_tokens": 12, "verifier_tokens": 15,
    }  # fmt: skip


def _session(writer: CellWriter, cell: Cell, trouble: Disturbed) -> dict[str, Any]:
    """On a simulated machine, whose treatment writes 50 tokens a second and whose control 40."""
    settings = BenchSettings.model_validate(cell.parameters["bench"])
    machine = SimulatedMachine(np.random.default_rng(3), trouble=trouble, speeds=SPEEDS)
    session = Session(
        settings, machine.run, machine.instruments, rng=np.random.default_rng(cell.seed), clock=machine.clock
    )
    runs = [run for block in session.blocks() for run in block]
    writer.table_artefact(RUNS, run_table(runs))
    writer.table_artefact(BLOCKS, _blocks(judged(runs)))
    if cell.parameters["speculation"]:
        told = {"alpha": 0.625, "cost_ratio": 0.25, "predicted_speed_up": 1.375}
        writer.json_artefact(SPECULATION, {"treatment": told})
    return {"runs": len(runs)}


def _blocks(runs: list[Run]) -> pa.Table:
    blocks = sorted({run.block for run in runs if run.phase == "contrast"})
    means = {
        arm: [
            float(np.mean([np.log(r.tokens_per_s) for r in runs if (r.phase, r.block, r.arm) == ("contrast", b, arm)]))
            for b in blocks
        ]
        for arm in ("treatment", "control")
    }
    return pa.table({"item": [f"block {block}" for block in blocks], **means})
