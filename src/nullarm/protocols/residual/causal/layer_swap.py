"""Body swaps by ranges of layers: blocks of the one model stand in for the other's.

Windows of consecutive blocks say where the change is enough by itself; prefixes and suffixes say how much of it has
been made up to a layer, and from there on. A block that does little in the wrong company is not thereby unimportant: a
window measures it among blocks that were trained without it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import torch
from torch import Tensor

from nullarm.errors import ModelError
from nullarm.models.anatomy import Anatomy
from nullarm.models.residual_stream import blocks_from
from nullarm.protocols.base import CellResult
from nullarm.protocols.residual.causal.outcome import Ending, final_hidden, outcome_columns, prompt_loss
from nullarm.protocols.residual.causal.summary import layer_swap_metrics
from nullarm.protocols.residual.causal.tables import DIRECTIONS, LAYER_SWAP, LAYER_SWAP_TABLE
from nullarm.protocols.residual.causal.trial import Trial
from nullarm.protocols.residual.reading.tokens import Encoded, batches, padded
from nullarm.protocols.residual.runs import SIDES, Side

Range = tuple[int, int]
"""First and last block, both included."""


@dataclass(frozen=True)
class _Run:
    """How a batch ends, and its [row] loss."""

    ending: Ending
    loss: Tensor


def run_layer_swap(trial: Trial) -> CellResult:
    """Exchange every window, prefix and suffix of blocks, both ways.

    Raises:
        InvalidResult: A number is NaN or infinite.
        ModelError: The models' shapes differ, their blocks cannot be exchanged, or the window is longer than the model.
        Preempted: Somebody asked for a stop.
    """
    trial.require_same_shape()
    wanted = spans(trial.models.base.layers, trial.context.cell.parameters["window"])
    found = trial.tables(batches(trial.rows, trial.batch_tokens), lambda rows: _of_batch(trial, rows, wanted))
    table = found.sort_by("prompt")  # stable, and the same however prompts were batched
    trial.context.writer.table_artefact(LAYER_SWAP, table)
    return CellResult(layer_swap_metrics(table))


def spans(layers: int, window: int) -> list[tuple[str, Range]]:
    """Every window, prefix and suffix of a model's blocks.

    Raises:
        ModelError: The window is longer than the model.
    """
    if window > layers:
        raise ModelError("causal.window is more blocks than the model has", value=window, valid=f"1 to {layers}")
    return [
        *(("window", (first, first + window - 1)) for first in range(layers - window + 1)),
        *(("prefix", (0, last)) for last in range(layers)),
        *(("suffix", (first, layers - 1)) for first in range(layers)),
    ]


def _of_batch(trial: Trial, rows: Sequence[Encoded], wanted: Sequence[tuple[str, Range]]) -> pa.Table:
    ids, lengths = (tensor.to(trial.models.device) for tensor in padded(rows, 0))
    plain = {}
    for side in SIDES:
        with trial.models.body(side) as anatomy:
            plain[side] = _run(trial, side, anatomy, ids, lengths)
    tables = []
    for name, (donor, recipient) in DIRECTIONS.items():
        swapped = {r: _swapped(trial, donor, recipient, r, ids, lengths) for r in dict.fromkeys(r for _, r in wanted)}
        for span, blocks in wanted:
            outcomes = _outcomes(swapped[blocks], plain[recipient], plain[donor], trial.least_gap)
            tables.append(_table(rows, name, span, blocks, outcomes))
    return pa.concat_tables(tables)


def _swapped(trial: Trial, donor: Side, recipient: Side, blocks: Range, ids: Tensor, lengths: Tensor) -> _Run:
    """The recipient with a range of the donor's blocks, which come to the device in the place of its own."""
    own, other = trial.models.of(recipient).anatomy, trial.models.of(donor).anatomy
    with blocks_from(own, other, range(blocks[0], blocks[1] + 1)), trial.models.body(recipient) as anatomy:
        return _run(trial, recipient, anatomy, ids, lengths)


def _run(trial: Trial, side: Side, anatomy: Anatomy, ids: Tensor, lengths: Tensor) -> _Run:
    hidden = final_hidden(anatomy, trial.embeds(side, ids))
    return _Run(trial.readout.ending(side, anatomy, hidden, lengths), prompt_loss(anatomy, hidden, ids, lengths))


def _outcomes(found: _Run, recipient: _Run, donor: _Run, least_gap: float) -> dict[str, pa.Array]:
    losses = {"loss": found.loss, "loss_recipient": recipient.loss, "loss_donor": donor.loss}
    columns = outcome_columns(found.ending, recipient.ending, donor.ending, least_gap)
    return columns | {name: _nullable(loss) for name, loss in losses.items()}


def _nullable(loss: Tensor) -> pa.Array:
    return pa.array(loss.cpu().numpy(), pa.float32(), mask=torch.isnan(loss).cpu().numpy())


def _table(
    rows: Sequence[Encoded], direction: str, span: str, blocks: Range, outcomes: Mapping[str, pa.Array]
) -> pa.Table:
    keys = {"direction": direction, "span": span, "first": blocks[0], "last": blocks[1]}
    repeated = {name: [value] * len(rows) for name, value in keys.items()}
    return pa.table({"prompt": [row.prompt for row in rows], **repeated, **outcomes}, schema=LAYER_SWAP_TABLE)
