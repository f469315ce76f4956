"""Steering by the mean difference: strength · direction added to the base model's residuals at one layer.

The direction of a layer is the mean difference fine-tuned − base of its residuals, which the capture measured; adding a
difference of means is the intervention of Turner et al. (2023, 2308.10248) and Panickssery et al. (2023, 2312.06681),
here with the difference between models, not between prompts. Its control, in the same table, is a random direction of
the same length at every layer: what any push of this size does.

All positions are steered but the first, which often carries an attention sink, and which a capture leaves out too;
the only position of a prompt of one token is steered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

import pyarrow as pa
import torch
from torch import Tensor

from nullarm.errors import ModelError
from nullarm.models.residual_stream import Edit
from nullarm.protocols.base import CellResult
from nullarm.protocols.residual.causal.outcome import Ending, outcome_columns
from nullarm.protocols.residual.causal.summary import steering_metrics
from nullarm.protocols.residual.causal.tables import MEAN_DIFFERENCE, RANDOM, STEERING, STEERING_TABLE
from nullarm.protocols.residual.causal.trial import Trial
from nullarm.protocols.residual.reading.tokens import Encoded

FIRST_POSITION = 1
"""The first one that is steered."""

Site = tuple[str, int, float]
"""Direction, layer, strength."""
Directions = Mapping[str, Tensor]
"""Name to [layers + 1, d_model], layer −1 first."""


def run_steering(trial: Trial, mean_difference: Tensor) -> CellResult:
    """Steer the base model at every layer and strength, by the mean difference and by its control.

    Args:
        trial: The work.
        mean_difference: [layers + 1, d_model] fine-tuned − base, layer −1 first, fp32.

    Raises:
        InvalidResult: A number is NaN or infinite.
        ModelError: The direction is not of the base model's shape.
        Preempted: Somebody asked for a stop.
    """
    base, cell = trial.models.base, trial.context.cell
    if mean_difference.shape != (shape := (base.layers + 1, base.d_model)):
        raise ModelError(
            "the mean difference is not of the base model's shape", value=tuple(mean_difference.shape), valid=[shape]
        )
    directions = with_control(mean_difference, torch.Generator().manual_seed(cell.seed))
    sites = list(product(directions, range(-1, base.layers), cell.parameters["strengths"]))
    table = trial.tables([[row] for row in trial.rows], lambda rows: _of_prompt(trial, rows[0], directions, sites))
    trial.context.writer.table_artefact(STEERING, table)
    return CellResult(steering_metrics(table))


def with_control(mean_difference: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
    """The direction of every layer, and random ones of the same lengths, drawn for all layers at once.

    Args:
        mean_difference: [layers + 1, d_model], on the CPU.
        rng: Draws the control.
    """
    drawn = torch.randn(mean_difference.shape, generator=rng)
    control = drawn / drawn.norm(dim=-1, keepdim=True) * mean_difference.norm(dim=-1, keepdim=True)
    return {MEAN_DIFFERENCE: mean_difference, RANDOM: control}


def _of_prompt(trial: Trial, row: Encoded, directions: Directions, sites: Sequence[Site]) -> pa.Table:
    base, sft = trial.ending("base", row), trial.ending("sft", row)
    placed = {name: direction.to(trial.models.device) for name, direction in directions.items()}
    first = min(FIRST_POSITION, len(row.ids) - 1)

    def table(part: Sequence[Site], found: Ending) -> pa.Table:
        return _table(row.prompt, part, directions, outcome_columns(found, base, sft, trial.least_gap))

    return trial.under("base", row, sites, lambda part: additions(part, placed, first), table)


def additions(sites: Sequence[Site], directions: Directions, first: int) -> dict[int, Edit]:
    """Edits that add to row i, from position `first` on, what site i says."""
    by_layer: dict[int, tuple[list[int], list[Tensor]]] = {}
    for row, (name, layer, strength) in enumerate(sites):
        rows, added = by_layer.setdefault(layer, ([], []))
        rows.append(row)
        added.append(strength * directions[name][layer + 1])
    return {layer: _add(rows, torch.stack(added), first) for layer, (rows, added) in by_layer.items()}


def _add(rows: Sequence[int], added: Tensor, first: int) -> Edit:
    i = torch.tensor(rows, device=added.device)

    def edit(hidden: Tensor) -> Tensor:
        changed = hidden.clone()
        changed[i, first:] += added[:, None].to(hidden)
        return changed

    return edit


def _table(prompt: int, sites: Sequence[Site], directions: Directions, outcomes: Mapping[str, pa.Array]) -> pa.Table:
    names, layers, strengths = zip(*sites, strict=True)
    norms = [abs(strength) * float(directions[name][layer + 1].norm()) for name, layer, strength in sites]
    keys = {"prompt": [prompt] * len(sites), "direction": names, "layer": layers, "strength": strengths}
    return pa.table({**keys, "added_norm": norms, **outcomes}, schema=STEERING_TABLE)
