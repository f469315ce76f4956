"""Stage `sweep`: one method, one matrix after another at several ranks, the rest of the model as it was."""

from __future__ import annotations

from functools import partial
from typing import Any

import pyarrow as pa
from pydantic import TypeAdapter

from nullarm.protocols.base import CellContext, CellResult
from nullarm.protocols.low_rank.calibration.collect import collect
from nullarm.protocols.low_rank.cells.reading import (
    calibration_batches,
    evaluation_windows,
    go_on,
    layer_blocks,
    model_of,
)
from nullarm.protocols.low_rank.methods.settings import LowRank
from nullarm.protocols.low_rank.slots import INPUTS, Group, groups
from nullarm.protocols.low_rank.sweep import LayerSweep, swept_table
from nullarm.protocols.low_rank.tables import ERRORS


def run(context: CellContext) -> CellResult:
    """Sweep, some layers at a time.

    Raises:
        Preempted: Asked to stop between two blocks of layers.
        ModelError: The model is missing, or has other matrices than the protocol knows.
        DatasetError: A split is too short.
        InvalidResult: A likelihood is no finite number.
    """
    asked, settings = context.cell.parameters, context.cell.settings
    method: LowRank = TypeAdapter(LowRank).validate_python(asked["method"])
    model, tokenizer = model_of(context)
    batches = calibration_batches(context, tokenizer)
    windows = evaluation_windows(context, tokenizer)[: asked["windows"]]
    swept = LayerSweep(model, windows, int(settings["batch_size"]))
    found = groups(settings["model"], asked["slots"], shared=method.shared)
    layers, tables = sorted({group.layer for group in found}), []
    for number, block in enumerate(layer_blocks(layers, int(settings["layers_at_once"]))):
        go_on(context, f"layers {block[0]} to {block[-1]}")
        mine = [group for group in found if group.layer in block]
        work = partial(_block, swept, batches, method, mine, block, asked["keep"])
        tables.append(context.writer.table_chunk(f"layers-{number:04d}", work))
        context.progress(block[-1] + 1, len(layers), "layers")
    table = pa.concat_tables(tables)
    context.writer.table_artefact(ERRORS, table)
    return CellResult({"rows": len(table), "windows": len(windows)})


def _block(
    swept: LayerSweep, batches: list[Any], method: LowRank, found: list[Group], layers: list[int], keep: list[float]
) -> pa.Table:
    inputs = collect(swept.model, batches, layers=layers, inputs={INPUTS[group.slots[0]] for group in found})
    return swept_table(
        row for group in found for row in swept.ranks(group, method, keep, inputs[group.layer, INPUTS[group.slots[0]]])
    )
