"""Stage `evaluate`: the perplexity of what an arm really runs, window by window, and the hash of it."""

from __future__ import annotations

from functools import partial
from typing import Any

import pyarrow as pa
import torch

from nullarm.protocols.base import CellContext, CellResult
from nullarm.protocols.low_rank.cells.loading import arm_model
from nullarm.protocols.low_rank.cells.reading import evaluation_windows, go_on
from nullarm.protocols.low_rank.factored.install import weight_bytes
from nullarm.protocols.low_rank.factored.treatment import treatment_hash
from nullarm.protocols.low_rank.perplexity.likelihoods import window_likelihoods
from nullarm.protocols.low_rank.perplexity.measures import Likelihood, perplexities
from nullarm.protocols.low_rank.perplexity.windows import Window
from nullarm.protocols.low_rank.slots import SLOTS
from nullarm.protocols.low_rank.tables import ITEMS, TREATMENT

WINDOWS_PER_CHUNK = 256


def run(context: CellContext) -> CellResult:
    """Read the evaluation text.

    Raises:
        Preempted: Asked to stop between two chunks.
        ModelError: The model is missing or unreadable.
        DatasetError: There is no text.
        InvalidResult: A likelihood is no finite number.
    """
    model, tokenizer = arm_model(context, "factors")
    windows = evaluation_windows(context, tokenizer)
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    treatment = _treatment(model, windows)
    table = pa.concat_tables(_chunks(context, model, windows))
    context.writer.table_artefact(ITEMS, table)
    context.writer.json_artefact(TREATMENT, treatment)
    found = perplexities([Likelihood(**row) for row in _likelihoods(table)])
    return CellResult(
        {
            "token_perplexity": found.token, "word_perplexity": found.word, "byte_perplexity": found.byte,
            "bytes": treatment["bytes"], "slot_bytes": treatment["slot_bytes"], "peak_memory_bytes": _peak(model),
        }
    )  # fmt: skip


def _chunks(context: CellContext, model: Any, windows: list[Window]) -> list[pa.Table]:
    size, tables = int(context.cell.settings["batch_size"]), []
    for start in range(0, len(windows), WINDOWS_PER_CHUNK):
        part = windows[start : start + WINDOWS_PER_CHUNK]
        go_on(context, f"window {start} of {len(windows)}")
        tables.append(context.writer.table_chunk(f"windows-{start:06d}", partial(_table, model, part, size)))
        context.progress(start + len(part), len(windows), "windows")
    return tables


def _table(model: Any, windows: list[Window], batch_size: int) -> pa.Table:
    rows = window_likelihoods(model, windows, batch_size=batch_size)
    columns = {name: [getattr(row, name) for row in rows] for name in Likelihood.__dataclass_fields__}
    return pa.table({**columns, "log_likelihood": [-row.nll / row.tokens for row in rows]})


def _likelihoods(table: pa.Table) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = table.select(list(Likelihood.__dataclass_fields__)).to_pylist()
    return rows


def _treatment(model: Any, windows: list[Window]) -> dict[str, Any]:
    """What identifies the treatment: effective weights and logits; and its bytes."""
    total = sum({id(t): t.nbytes for t in (*model.parameters(), *model.buffers())}.values())
    return {
        **treatment_hash(model, torch.from_numpy(windows[0].ids)[None]),
        "bytes": total,
        "slot_bytes": weight_bytes(model, SLOTS),
    }


def _peak(model: Any) -> int | None:
    """Most bytes of the GPU that were held while the text was read; None on a CPU, whose process did other things."""
    return int(torch.cuda.max_memory_allocated()) if model.device.type == "cuda" else None
