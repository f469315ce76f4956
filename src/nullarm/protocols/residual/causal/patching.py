"""Activation patching between the models: one residual of the one, at one layer and position, put into the other.

Causal tracing (Meng et al. 2022, 2202.05262; Vig et al. 2020, 2004.12265) between two models on one prompt instead of
two prompts in one model, as cross-model activation patching does (Prakash et al. 2024, 2402.14811). At the last layer
the residual of the last position alone reaches the head, and the effect there says only how alike final norm and head
are; the earlier positions and layers say where the difference travels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa
import torch
from torch import Tensor

from nullarm.models.residual_stream import Edit, residual_stream
from nullarm.protocols.base import CellResult
from nullarm.protocols.residual.causal.outcome import Ending, outcome_columns
from nullarm.protocols.residual.causal.summary import patching_metrics
from nullarm.protocols.residual.causal.tables import DIRECTIONS, PATCHING, PATCHING_TABLE
from nullarm.protocols.residual.causal.trial import Trial
from nullarm.protocols.residual.reading.tokens import Encoded
from nullarm.protocols.residual.runs import SIDES, Side

Site = tuple[int, int]
"""Layer and position."""


def run_patching(trial: Trial) -> CellResult:
    """Patch every layer and position of every prompt, both ways.

    Raises:
        InvalidResult: A number is NaN or infinite.
        ModelError: Width or depth of the models differ.
        Preempted: Somebody asked for a stop.
    """
    trial.require_same_shape()
    table = trial.tables([[row] for row in trial.rows], lambda rows: _of_prompt(trial, rows[0]))
    trial.context.writer.table_artefact(PATCHING, table)
    return CellResult(patching_metrics(table))


def _of_prompt(trial: Trial, row: Encoded) -> pa.Table:
    ends = {side: trial.ending(side, row) for side in SIDES}
    return pa.concat_tables([_one_way(trial, row, name, ends) for name in DIRECTIONS])


def _one_way(trial: Trial, row: Encoded, direction: str, ends: Mapping[Side, Ending]) -> pa.Table:
    donor, recipient = DIRECTIONS[direction]
    embeds = trial.embeds(donor, torch.tensor([row.ids]))
    with trial.models.body(donor) as anatomy:
        stream = residual_stream(anatomy, embeds)[:, 0]
    layers = trial.models.of(recipient).layers
    sites = [(layer, position) for layer in range(-1, layers) for position in range(len(row.ids))]

    def table(part: Sequence[Site], found: Ending) -> pa.Table:
        columns = outcome_columns(found, ends[recipient], ends[donor], trial.least_gap)
        return _table(row.prompt, direction, part, columns)

    return trial.under(recipient, row, sites, lambda part: replacements(part, stream), table)


def replacements(sites: Sequence[Site], stream: Tensor) -> dict[int, Edit]:
    """Edits that give row i, at the layer and position of site i, the residual of another model.

    Args:
        sites: Layer and position of each row.
        stream: [layers + 1, position, d_model] residuals of the other model.
    """
    by_layer: dict[int, list[tuple[int, int]]] = {}
    for row, (layer, position) in enumerate(sites):
        by_layer.setdefault(layer, []).append((row, position))
    return {layer: _replace(places, stream[layer + 1]) for layer, places in by_layer.items()}


def _replace(places: Sequence[tuple[int, int]], residuals: Tensor) -> Edit:
    i, p = torch.tensor(places, device=residuals.device).T

    def edit(hidden: Tensor) -> Tensor:
        changed = hidden.clone()
        changed[i, p] = residuals[p].to(hidden)
        return changed

    return edit


def _table(prompt: int, direction: str, sites: Sequence[Site], outcomes: Mapping[str, pa.Array]) -> pa.Table:
    layers, positions = zip(*sites, strict=True)
    keys = {"prompt": [prompt] * len(sites), "direction": [direction] * len(sites)}
    return pa.table({**keys, "layer": layers, "position": positions, **outcomes}, schema=PATCHING_TABLE)
