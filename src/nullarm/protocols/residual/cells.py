"""The work of each stage."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import safetensors.torch
import torch

from nullarm.errors import Preempted
from nullarm.protocols.base import CellContext, CellResult
from nullarm.protocols.residual.capture.batch import Capture, Streams
from nullarm.protocols.residual.capture.finish import (
    largest_divergence,
    stream_tables,
    write_layers,
    write_means,
    write_prompts,
    write_vocabulary,
)
from nullarm.protocols.residual.capture.null_check import self_divergence, verdict_on_itself
from nullarm.protocols.residual.capture.numbers import measure
from nullarm.protocols.residual.capture.pair_lens import lens_of
from nullarm.protocols.residual.capture.pair_models import PairModels, load_pair
from nullarm.protocols.residual.capture.rows import scalars_table, topk_table, tracked_table
from nullarm.protocols.residual.capture.sampling import Ints, sample_positions
from nullarm.protocols.residual.capture.shards import Shards, sample_table
from nullarm.protocols.residual.capture.tuned_lens import Translators
from nullarm.protocols.residual.parameters import MultiPass, Swap, WholeLayer, passes_of
from nullarm.protocols.residual.reading.alignment import relative_layers
from nullarm.protocols.residual.reading.rows import Reading, Row, read_pair
from nullarm.protocols.residual.runs import SIDES
from nullarm.protocols.residual.tables import CAPTURE
from nullarm.study.identity import content_hash
from nullarm.study.plan import Cell

GROUP = 16
"""Batches whose residuals wait together for the other body, where the bodies lie apart."""
RESIDUALS = "residuals"
"""Artefact with every residual, where it is asked for: one safetensors file per batch, one tensor per pass."""


def run_capture(context: CellContext) -> CellResult:
    """Measure every batch, shard by shard, then put the tables together.

    Raises:
        Preempted: Asked to stop; what is committed is kept.
        InvalidResult: A number is not finite.
        ModelError: A model, a token or a swap is not to be had.
    """
    cell, writer = context.cell, context.writer
    started = writer.json_chunk("started", lambda: f"{datetime.now(UTC):%Y%m%d_%H%M%S}")
    models = load_pair(cell, noise_seed(cell))
    reading = read_pair(cell, models)
    for note in reading.notes:
        print(note, flush=True)
    capture = _capture(context, models, reading)
    shards = Shards(writer, reading.batches)
    itself = writer.json_chunk("itself", lambda: self_divergence(capture, reading.batches[0]))
    _measure(context, capture, reading, shards)
    return _finish(context, capture, reading, shards, started, itself)


def run_tune_lens(context: CellContext) -> CellResult:
    """Train the translators of one model."""
    from nullarm.protocols.residual.capture import tune

    return tune.run_tune_lens(context)


def run_intervention(context: CellContext) -> CellResult:
    """Patch, swap blocks, or steer."""
    from nullarm.protocols.residual.causal import interventions

    return interventions.run(context, load_pair(context.cell, noise_seed(context.cell)))


def noise_seed(cell: Cell) -> int:
    """Seed of the noise that a replicate of a matched-noise arm draws."""
    return int(content_hash([cell.seed, cell.replicate])[:15], 16)


def _capture(context: CellContext, models: PairModels, reading: Reading) -> Capture:
    asked = context.cell.parameters
    swaps = [Swap.model_validate(swap) for swap in asked["embedding_variants"]]
    passes = passes_of(MultiPass.model_validate(asked["multi_pass"]), swaps)
    lens = lens_of(
        models, reading.shared, asked["lens"], _translators(context, models),
        top_k=asked["top_k"], tracked=list(reading.tracked),
    )  # fmt: skip
    layers = relative_layers(models.base.layers, models.sft.layers)
    return Capture(models, passes, lens, layers, same_tokens=reading.same_tokens, direct_change=asked["direct_change"])


def _translators(context: CellContext, models: PairModels) -> Mapping[Any, Translators] | None:
    if context.cell.parameters["lens"] != "tuned":
        return None
    found = {side: context.needs[f"lens_{side}"].artefact("translators") for side in SIDES}
    return {side: Translators.load(path).to(models.device) for side, path in found.items()}


def _measure(context: CellContext, capture: Capture, reading: Reading, shards: Shards) -> None:
    asked, batches = context.cell.parameters, reading.batches
    whole = WholeLayer.model_validate(asked["whole_layer"])
    chosen = sample_positions(reading.rows, whole.tokens, whole.skip_positions, context.cell.seed)
    left = shards.open()
    size = GROUP if capture.models.apart else 1
    for start in range(0, len(left), size):
        if context.should_stop():
            raise Preempted(
                f"asked to stop before batch {left[start]} of {len(batches)}", next_command="nullarm resume"
            )
        group = left[start : start + size]
        for index, streams in zip(group, capture.streams([batches[i] for i in group]), strict=True):
            if asked["keep_residuals"]:
                _keep(_kept(context, shards, index), streams)
            shards.commit(index, _tables(capture, batches[index], streams, chosen))
            context.progress(len(batches) - len(left) + start + group.index(index) + 1, len(batches), "batches")


def _tables(
    capture: Capture, batch: Sequence[Row], streams: Streams, chosen: Mapping[tuple[int, str], Ints]
) -> dict[str, pa.Table]:
    numbers = measure(capture, batch, streams)
    starts = np.cumsum([0, *(len(row.positions) for row in batch)]).tolist()
    picked = [chosen[row.key] + start for row, start in zip(batch, starts, strict=False)]
    where = torch.from_numpy(np.concatenate(picked))
    prompts = np.repeat([row.left.prompt for row in batch], [len(rows) for rows in picked])
    residuals = {
        run.name: (found := capture.compared(run, batch, streams))[:, where.to(found.device)]
        for run in capture.passes.runs
    }
    return {
        "scalars": scalars_table(numbers),
        "topk": topk_table(numbers),
        "tracked": tracked_table(numbers),
        "sample": sample_table(residuals, prompts),
    }


def _kept(context: CellContext, shards: Shards, index: int) -> Path:
    """Where the residuals of a batch wait until the cell is finished."""
    return context.writer.paths.scratch / RESIDUALS / f"batch-{shards.names[index]}.safetensors"


def _keep(path: Path, streams: Streams) -> None:
    path.parent.mkdir(exist_ok=True)
    tensors = {f"{f.embedding}_embedding.{f.body}_body": t.contiguous() for f, t in streams.items() if f.onto is None}
    partial = path.with_name(f".tmp-{path.name}")
    safetensors.torch.save_file(tensors, partial)
    partial.replace(path)


def _finish(
    context: CellContext, capture: Capture, reading: Reading, shards: Shards, started: str, itself: dict[str, float]
) -> CellResult:
    cell, writer, models = context.cell, context.writer, capture.models
    resamples = WholeLayer.model_validate(cell.parameters["whole_layer"]).resamples
    rng = np.random.default_rng(cell.seed)
    stream_tables(writer, shards)
    means, items = write_means(writer, shards, capture, rng, resamples)
    write_layers(writer, shards, capture, rng, resamples, means)
    write_prompts(writer, reading)
    write_vocabulary(writer, models.base.tokenizer, reading.shared.left_ids.tolist())
    if cell.parameters["keep_residuals"]:
        kept = [_kept(context, shards, index) for index in range(len(reading.batches))]
        writer.directory_artefact(RESIDUALS, lambda directory: _link(kept, directory))
    if cell.inputs["base"] == cell.inputs["sft"] and cell.parameters["sft_weights"] == "trained":
        itself = {**itself, **largest_divergence(shards)}
    reason = verdict_on_itself(itself, cell.parameters["null_epsilon"])
    writer.json_artefact(CAPTURE, _description(cell, capture, reading, started, itself))
    metrics = {name: float(np.mean(items[name])) for name in items.column_names if name not in ("item", "cluster")}
    return CellResult({"prompts": len(items), **metrics}, outcome="ok" if reason is None else "invalid", reason=reason)


def _link(files: Sequence[Path], directory: Path) -> None:
    """Into the artefact without a copy, and still in scratch should this attempt be killed before its record."""
    for path in files:
        os.link(path, directory / path.name)


def _description(
    cell: Cell, capture: Capture, reading: Reading, started: str, itself: Mapping[str, float]
) -> dict[str, Any]:
    passes, shared = capture.passes, reading.shared
    return {
        "started": started,
        "entry": cell.arm,
        "base": cell.settings["base"],
        "sft": cell.settings["sft"],
        "sft_weights": cell.parameters["sft_weights"],
        "dtype": cell.parameters["dtype"],
        "lens": cell.parameters["lens"],
        "top_k": cell.parameters["top_k"],
        "layers": capture.models.base.layers,
        "d_model": capture.models.base.d_model,
        "multi_pass": passes.multi_pass,
        "runs": [asdict(run) for run in passes.runs],
        "comparisons": [asdict(comparison) for comparison in passes.comparisons],
        "tracked": {str(token): label for token, label in reading.tracked.items()},
        "tokens_shared": len(shared.left_ids),
        "tokens_left_out": {"base": shared.left_out_base, "sft": shared.left_out_sft},
        "refused": capture.refused,
        "notes": list(reading.notes),
        "null": dict(itself),
    }
