"""Stage `sweep`: one method, one matrix after another at several ranks, the rest of the model as it was."""

from __future__ import annotations

from functools import partial

import pyarrow as pa
from pydantic import TypeAdapter

from nullarm.protocols.base import CellContext, CellResult
from nullarm.protocols.low_rank.calibration.layers import LayerInputs
from nullarm.protocols.low_rank.cells.reading import (
    calibration_batches,
    evaluation_windows,
    go_on,
    model_of,
)
from nullarm.protocols.low_rank.methods.settings import LowRank
from nullarm.protocols.low_rank.perplexity.windows import Window
from nullarm.protocols.low_rank.slots import Group, groups
from nullarm.protocols.low_rank.sweep import LayerSweep, swept_table
from nullarm.protocols.low_rank.tables import ERRORS


def run(context: CellContext) -> CellResult:
    """Sweep, layer by layer.

    Raises:
        Preempted: Asked to stop between two layers.
        ModelError: The model is missing, or has other matrices than the protocol knows.
        DatasetError: A split is too short.
        InvalidResult: A likelihood is no finite number.
    """
    asked, settings = context.cell.parameters, context.cell.settings
    method: LowRank = TypeAdapter(LowRank).validate_python(asked["method"])
    model, tokenizer = model_of(context)
    batches = calibration_batches(context, tokenizer)
    windows = _spread(evaluation_windows(context, tokenizer), asked["windows"])
    swept = LayerSweep(model, windows, int(settings["batch_size"]))
    found = groups(settings["model"], asked["slots"], shared=method.shared)
    inputs = LayerInputs(model, batches, found, int(settings["layers_at_once"]))
    layers, tables = sorted({group.layer for group in found}), []
    for layer in layers:
        go_on(context, f"layer {layer}")
        mine = [group for group in found if group.layer == layer]
        work = partial(_layer, swept, method, mine, inputs, asked["keep"])
        tables.append(context.writer.table_chunk(f"layer-{layer:04d}", work))
        context.progress(layer + 1, len(layers), "layers")
    table = pa.concat_tables(tables)
    context.writer.table_artefact(ERRORS, table)
    return CellResult({"rows": len(table), "windows": len(windows)})


def _layer(swept: LayerSweep, method: LowRank, found: list[Group], inputs: LayerInputs, keep: list[float]) -> pa.Table:
    return swept_table(row for group in found for row in swept.ranks(group, method, keep, inputs.of(group)))


def _spread(windows: list[Window], wanted: int) -> list[Window]:
    """So many windows at equal distances over the whole text."""
    wanted = min(wanted, len(windows))
    return [windows[i * len(windows) // wanted] for i in range(wanted)]
