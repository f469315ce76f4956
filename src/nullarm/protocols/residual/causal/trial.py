"""What all interventions have: prompts, two models and how they end by themselves, durable chunks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import pyarrow as pa
import torch
from torch import Tensor

from nullarm.errors import ModelError, Preempted
from nullarm.models.anatomy import Anatomy
from nullarm.models.residual_stream import Edit, edited
from nullarm.protocols.base import CellContext
from nullarm.protocols.residual.capture.pair_models import PairModels
from nullarm.protocols.residual.causal.outcome import Ending, Readout, final_hidden
from nullarm.protocols.residual.causal.tables import LEAST_GAP
from nullarm.protocols.residual.reading.tokens import Encoded
from nullarm.protocols.residual.runs import Side
from nullarm.study.identity import content_hash

MOST_ROWS = 256
"""Rows of a forward pass, each with its own intervention: their next-token distributions are in memory at once."""

SiteT = TypeVar("SiteT")


@dataclass(frozen=True)
class Trial:
    """The work of one cell.

    Attributes:
        context: The cell, where it writes, and who asks it to stop.
        models: Both models.
        rows: The prompts, as both models read them.
        readout: What is read at the end.
    """

    context: CellContext
    models: PairModels
    rows: tuple[Encoded, ...]
    readout: Readout

    @property
    def batch_tokens(self) -> int:
        """Tokens of a forward pass."""
        return int(self.context.cell.settings["batch_tokens"])

    @property
    def least_gap(self) -> float:
        """Least |donor − recipient| of which an effect is a share, logits."""
        return LEAST_GAP[self.context.cell.parameters["dtype"]]

    def embeds(self, side: Side, ids: Tensor) -> Tensor:
        """[row, position, d_model] embeddings of [row, position] ids."""
        with torch.no_grad():
            found: Tensor = self.models.of(side).anatomy.embedding(ids.to(self.models.device))
            return found

    def ending(self, side: Side, row: Encoded) -> Ending:
        """How a prompt ends in a model as it is, one row."""
        embeds = self.embeds(side, torch.tensor([row.ids]))
        with self.models.body(side) as anatomy:
            return self.readout.ending(side, anatomy, final_hidden(anatomy, embeds), _full_length(embeds))

    def under(
        self,
        side: Side,
        row: Encoded,
        sites: Sequence[SiteT],
        edits: Callable[[Sequence[SiteT]], Mapping[int, Edit]],
        table: Callable[[Sequence[SiteT], Ending], pa.Table],
    ) -> pa.Table:
        """Run a prompt with an intervention at each of many sites, batch by batch.

        A batch has the prompt once for each of its sites, and every row its own intervention, whatever the layers, so
        that short prompts fill a device too.

        Args:
            side: The model that is changed.
            row: The prompt.
            sites: What to do, one row each.
            edits: From the sites of a batch to edits by layer; site i is row i.
            table: From the sites of a batch, and how they ended, to rows of a table.
        """
        embeds = self.embeds(side, torch.tensor([row.ids]))
        size = max(1, min(MOST_ROWS, self.batch_tokens // len(row.ids)))
        parts = [sites[start : start + size] for start in range(0, len(sites), size)]
        with self.models.body(side) as anatomy:
            tables = [
                table(part, self._edited(side, anatomy, embeds.expand(len(part), -1, -1), edits(part)))
                for part in parts
            ]
        return pa.concat_tables(tables)

    def _edited(self, side: Side, anatomy: Anatomy, embeds: Tensor, edits: Mapping[int, Edit]) -> Ending:
        with edited(anatomy, edits):
            hidden = final_hidden(anatomy, embeds)
        return self.readout.ending(side, anatomy, hidden, _full_length(embeds))

    def tables(self, parts: Sequence[Sequence[Encoded]], make: Callable[[Sequence[Encoded]], pa.Table]) -> pa.Table:
        """The tables of all parts in one, each part a durable chunk.

        Raises:
            Preempted: Somebody asked for a stop.
        """
        stage, found = self.context.cell.stage, []
        for done, rows in enumerate(parts):
            if self.context.should_stop():
                raise Preempted(f"asked to stop after {done} of {len(parts)} chunks of {stage}")
            digest = content_hash([[row.prompt, row.ids] for row in rows])
            found.append(self.context.writer.table_chunk(f"{stage}-{digest[:16]}", partial(make, rows)))
            self.context.progress(done + 1, len(parts), "chunks")
        return pa.concat_tables(found)

    def require_same_shape(self) -> None:
        """Check that a residual or a block of one model has its place in the other.

        Raises:
            ModelError: Width or depth differ.
        """
        base, sft = self.models.base, self.models.sft
        for what, ours, theirs in (("width", base.d_model, sft.d_model), ("depth", base.layers, sft.layers)):
            if ours != theirs:
                raise ModelError(
                    f"{self.context.cell.stage} needs models of one {what}", value=theirs, valid=str(ours),
                    next_command="leave it out of causal.interventions",
                )  # fmt: skip


def _full_length(embeds: Tensor) -> Tensor:
    return torch.full((len(embeds),), embeds.shape[1], device=embeds.device)
