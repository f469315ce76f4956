"""Stage `compress`: the factors of one arm, and what they cost in bytes and in error."""

from __future__ import annotations

from functools import partial
from typing import Any

import pyarrow as pa
import torch

from nullarm.protocols.base import CellContext, CellResult
from nullarm.protocols.low_rank.cells.factorising import Factorising
from nullarm.protocols.low_rank.cells.reading import generator, go_on
from nullarm.protocols.low_rank.factored.checkpoint import from_bytes, save, to_bytes
from nullarm.protocols.low_rank.factored.factors import Compressed
from nullarm.protocols.low_rank.online.adapt import adapt
from nullarm.protocols.low_rank.online.settings import OnlineSettings
from nullarm.protocols.low_rank.tables import FACTORS, GROUPS, HISTORY

TYPES = pa.schema(
    [("layer", pa.int64()), ("slots", pa.string()), ("rank", pa.int64()), ("break_even", pa.int64()),
     ("above_break_even", pa.bool_()), ("bytes", pa.int64()), ("dense_bytes", pa.int64()),
     ("weight_error", pa.float64()), ("output_error", pa.float64())]
)  # fmt: skip


def run(context: CellContext) -> CellResult:
    """Compress one arm's matrices, layer by layer.

    Raises:
        Preempted: Asked to stop between two layers.
        ModelError: The model is missing, or has other matrices than the protocol knows.
        StudyError: The budget does not pay for the least ranks, or the method has no gauge.
        DatasetError: The train split is too short.
    """
    work, writer = Factorising(context), context.writer
    compressed: Compressed = {}
    rows: list[dict[str, Any]] = []
    history: dict[str, Any] = {}
    for layer in work.layers:
        go_on(context, f"layer {layer}")
        made = writer.scratch_chunk(f"factors-{layer:04d}", "safetensors", partial(_encoded, work, layer))
        compressed |= from_bytes(made)
        if work.online is None:
            rows += _rows(context, work, layer, compressed)
        context.progress(layer + 1, work.layers[-1] + 1, "layers")
    if work.gauge is not None:
        history["gauge"] = work.gauge.to_json()
    if work.online is not None:
        go_on(context, "bases were adapted")
        compressed, history["online"] = _adapted(context, work, work.online, compressed)
        for layer in work.layers:
            rows += _rows(context, work, layer, compressed)
    _hand_on(context, compressed, rows, history)
    return CellResult({"bytes": sum(made.nbytes for made in compressed.values()), "groups": len(compressed)})


def _encoded(work: Factorising, layer: int) -> bytes:
    return to_bytes(work.layer(layer))


def _rows(context: CellContext, work: Factorising, layer: int, compressed: Compressed) -> list[dict[str, Any]]:
    made = partial(work.rows, layer, compressed)
    found: list[dict[str, Any]] = context.writer.json_chunk(f"rows-{layer:04d}", made)
    return found


def _adapted(
    context: CellContext, work: Factorising, settings: OnlineSettings, compressed: Compressed
) -> tuple[Compressed, list[dict[str, Any]]]:
    """The bases moved on the stream of the training text, and how; in one batch, which the settings cut into blocks."""
    stream = [torch.cat(work.batches)]
    return adapt(work.model, compressed, stream, settings, generator(context, "cpu"))


def _hand_on(context: CellContext, compressed: Compressed, rows: list[dict[str, Any]], history: dict[str, Any]) -> None:
    ref, content = context.cell.settings["model"], context.cell.inputs["model"]
    said = {"cell": context.cell.id, "arm": context.cell.arm}
    context.writer.directory_artefact(
        FACTORS, lambda path: save(path, compressed, model_ref=ref, model_content_id=content, provenance=said)
    )
    context.writer.table_artefact(GROUPS, pa.Table.from_pylist(rows, schema=TYPES))
    if history:
        context.writer.json_artefact(HISTORY, history)
