"""Stage `spectra`: the singular values of every matrix, of its weights and of what it makes of its inputs."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from nullarm.protocols.base import CellContext, CellResult
from nullarm.protocols.low_rank.calibration.collect import hidden_variance
from nullarm.protocols.low_rank.calibration.layers import LayerInputs
from nullarm.protocols.low_rank.cells.reading import calibration_batches, go_on, model_of
from nullarm.protocols.low_rank.slots import INPUTS, Group, groups
from nullarm.protocols.low_rank.spectra import Spectrum, ranks_table, singular_values_table, spectra
from nullarm.protocols.low_rank.tables import RANKS, SINGULAR_VALUES, VARIANCE


def run(context: CellContext) -> CellResult:
    """Look at the matrices, layer by layer.

    Raises:
        Preempted: Asked to stop between two layers.
        ModelError: The model is missing, or has other matrices than the protocol knows.
        DatasetError: The train split is too short.
    """
    model, tokenizer = model_of(context)
    batches = calibration_batches(context, tokenizer)
    found = groups(context.cell.settings["model"], context.cell.parameters["slots"], shared=False)
    layers = sorted({group.layer for group in found})
    variance = context.writer.json_chunk("variance", lambda: hidden_variance(model, batches).tolist())
    inputs = LayerInputs(model, batches, found, int(context.cell.settings["layers_at_once"]))
    tables = []
    for layer in layers:
        go_on(context, f"layer {layer}")
        mine = [group for group in found if group.layer == layer]
        tables.append(context.writer.table_chunk(f"spectra-{layer:04d}", partial(_values, model, mine, inputs)))
        context.progress(layer + 1, len(layers), "layers")
    values = pa.concat_tables(tables)
    context.writer.table_artefact(SINGULAR_VALUES, values)
    context.writer.table_artefact(RANKS, ranks_table(_spectra_of(values, found)))
    context.writer.table_artefact(VARIANCE, pa.table({"layer": range(len(variance)), "variance": variance}))
    return CellResult({"matrices": len(found), "tokens": sum(ids.numel() for ids in batches)})


def _values(model: Any, found: list[Group], inputs: LayerInputs) -> pa.Table:
    read = {(group.layer, INPUTS[group.slots[0]]): inputs.of(group) for group in found}
    return singular_values_table(spectra(model, found, read))


def _spectra_of(values: pa.Table, found: list[Group]) -> list[Spectrum]:
    """The spectra that a table of singular values has rows of."""
    by_key: dict[tuple[int, str, str], list[float]] = {}
    for layer, slot, metric, value in zip(
        *(values[name].to_pylist() for name in ("layer", "slot", "metric", "singular_value")), strict=True
    ):
        by_key.setdefault((layer, slot, metric), []).append(value)
    named = {(group.layer, "+".join(group.slots)): group for group in found}
    return [Spectrum(named[layer, slot], metric, np.array(v)) for (layer, slot, metric), v in by_key.items()]
