"""From the shards of a capture to its artefacts; what grows with the prompts is streamed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import safetensors.torch
import torch
from torch import Tensor

from nullarm.protocols.residual.capture.batch import Capture
from nullarm.protocols.residual.capture.shards import SAMPLE_PROMPTS, Shards, sampled
from nullarm.protocols.residual.capture.summary import items_table, layer_rows, prompt_means, trajectories
from nullarm.protocols.residual.capture.whole_layer import bootstrap_layers
from nullarm.protocols.residual.reading.rows import Reading
from nullarm.protocols.residual.tables import (
    DIRECTIONS_NAME,
    LAYERS,
    LAYERS_NAME,
    PROMPTS,
    PROMPTS_NAME,
    SCALARS,
    TOPK,
    TRACKED,
    VOCABULARY,
    VOCABULARY_NAME,
)
from nullarm.store.cell import CellWriter
from nullarm.store.tables import ITEMS

STREAMED = {"scalars": SCALARS, "topk": TOPK, "tracked": TRACKED}
DIVERGENCES = ("js", "kl_div", "kl_reverse", "relative_diff", "direct_diff")


def stream_tables(writer: CellWriter, shards: Shards) -> None:
    """Hand on `scalars`, `topk` and `tracked`: one row group per batch."""
    for name, schema in STREAMED.items():
        writer.file_artefact(name, "parquet", partial(_stream, shards=shards, name=name, schema=schema))


def write_means(
    writer: CellWriter, shards: Shards, capture: Capture, rng: np.random.Generator, resamples: int
) -> tuple[pa.Table, pa.Table]:
    """Hand on the judged items; the trajectories, as rows of `layers`, and the items."""
    means = pa.concat_tables([prompt_means(table) for table in shards.tables("scalars")])
    items = items_table(means, capture.passes)
    writer.table_artefact(ITEMS, items)
    return trajectories(means, rng, resamples), items


def largest_divergence(shards: Shards) -> dict[str, float]:
    """The largest value of every divergence over everything that was captured; absent where none was measured."""
    found: dict[str, float] = {}
    for table in shards.tables("scalars"):
        for name in DIVERGENCES:
            if (most := pc.max(table[name]).as_py()) is not None:
                found[name] = max(found.get(name, 0.0), most)
    return found


def write_layers(
    writer: CellWriter, shards: Shards, capture: Capture, rng: np.random.Generator, resamples: int, means: pa.Table
) -> None:
    """Hand on `layers` (trajectories and whole-layer metrics) and the mean-difference directions."""
    tables = list(shards.tables("sample"))
    prompts = np.concatenate([np.array(table[SAMPLE_PROMPTS][0].as_py(), np.int64) for table in tables])
    models, passes = capture.models, capture.passes
    widths = {run.name: models.of(run.body).d_model for run in passes.runs}
    residuals = sampled(tables, models.base.anatomy.head.weight.dtype, widths)
    rows: list[dict[str, Any]] = []
    directions: dict[str, list[Tensor]] = {c.name: [] for c in passes.comparisons}
    seed = int(rng.integers(2**32))
    for index in range(models.base.layers + 1 if len(prompts) else 0):
        streams = {name: stream[index].to(models.device) for name, stream in residuals.items()}
        found = bootstrap_layers(streams, prompts, passes.comparisons, np.random.default_rng(seed), resamples)
        for (kind, record), metrics in found.metrics.items():
            rows += layer_rows(kind, record, index - 1, metrics)
        for name, direction in found.directions.items():
            directions[name].append(direction.cpu())
    table = pa.concat_tables([means, pa.Table.from_pylist(rows, LAYERS)])
    writer.table_artefact(LAYERS_NAME, table)
    stacked = {name: torch.stack(found).contiguous() for name, found in directions.items() if found}
    writer.directory_artefact(
        DIRECTIONS_NAME, lambda path: safetensors.torch.save_file(stacked, path / f"{DIRECTIONS_NAME}.safetensors")
    )


def write_prompts(writer: CellWriter, reading: Reading) -> None:
    """Hand on what was read, in the order of the other tables."""
    rows = [
        {
            "prompt": row.left.prompt, "variant": row.left.variant, "text": row.left.text, "ids": row.left.ids,
            "tokens": row.left.tokens, "positions": row.positions,
        }
        for row in reading.rows
    ]  # fmt: skip
    writer.table_artefact(PROMPTS_NAME, pa.Table.from_pylist(rows, PROMPTS))


def write_vocabulary(writer: CellWriter, tokenizer: Any, ids: Sequence[int]) -> None:
    """Hand on the decoded text of the shared tokens; rows that only pad the embedding matrix have none."""
    known = [token_id for token_id in ids if token_id < len(tokenizer)]
    texts = tokenizer.batch_decode([[token_id] for token_id in known])
    writer.table_artefact(VOCABULARY_NAME, pa.table({"id": known, "token": texts}, schema=VOCABULARY))


def _stream(path: Path, *, shards: Shards, name: str, schema: pa.Schema) -> None:
    with pq.ParquetWriter(path, schema, compression="zstd") as sink:
        for table in shards.tables(name):
            if len(table):
                sink.write_table(table, row_group_size=len(table))
