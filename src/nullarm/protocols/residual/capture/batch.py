"""Running a batch of prompts: every distinct pass forward once, and the residuals at the positions that are compared.

Shapes: L blocks, N compared positions of the batch (all prompts one after the other).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from nullarm.errors import ModelError
from nullarm.models.anatomy import Anatomy
from nullarm.models.residual_stream import forced_outputs, residual_stream
from nullarm.protocols.residual.capture.pair_lens import Lens
from nullarm.protocols.residual.capture.pair_models import PairModels
from nullarm.protocols.residual.reading.rows import Row
from nullarm.protocols.residual.reading.tokens import padded
from nullarm.protocols.residual.runs import SIDES, Comparison, Passes, Run, Side


class Forward(NamedTuple):
    """One pass: whose body, whose embedding; forced onto the residuals of another pass when `onto` is given."""

    body: Side
    embedding: Side
    onto: tuple[Side, Side] | None = None


Streams = dict[Forward, Tensor]
"""[layers + 1, batch, position, d_model] of each pass."""


class Capture:
    """Two models and what is asked of them.

    Args:
        models: Both models.
        passes: Runs and comparisons.
        lens: How residuals become logits.
        layers: For every block of the base, the block of the fine-tuned model it is compared with.
        same_tokens: Whether both models read the same ids.
        direct_change: Whether blocks are also let work on the other run's residuals.

    Raises:
        ModelError: A run puts together what does not fit.
    """

    def __init__(
        self, models: PairModels, passes: Passes, lens: Lens, layers: Sequence[int], *, same_tokens: bool,
        direct_change: bool,
    ) -> None:  # fmt: skip
        self.models, self.passes, self.lens = models, passes, lens
        self._places: Mapping[Side, list[int]] = {
            "base": list(range(models.base.layers + 1)),
            "sft": [0, *(layer + 1 for layer in layers)],
        }
        self.one_width = models.base.d_model == models.sft.d_model
        same_depth = models.base.layers == models.sft.layers
        self.same_tokens = same_tokens
        self.direct = direct_change and self.one_width and same_depth and same_tokens
        self._forced = {
            c.name: Forward(right.body, right.embedding, left.forward)
            for c in passes.comparisons
            for left, right in [(passes.run(c.left), passes.run(c.right))]
            if self.direct and left.body != right.body
        }
        _refuse_swaps(passes, models, same_tokens)

    @property
    def refused(self) -> dict[str, str]:
        """Metrics that these two models do not have, each with the reason."""
        found: dict[str, str] = {}
        base, sft = self.models.base, self.models.sft
        if not self.one_width:
            why = f"the residual streams have different widths, {base.d_model} and {sft.d_model}"
            found |= dict.fromkeys(("cosine", "norm_diff", "relative_diff", "direct_diff", "mean_difference"), why)
        elif base.layers != sft.layers:
            found["direct_diff"] = f"the models have different depths, {base.layers} and {sft.layers}"
        if not self.same_tokens:
            why = "the tokenisers cut the texts differently"
            found |= dict.fromkeys(("loss", "rank", "loss_diff", "direct_diff"), why)
        return found

    def streams(self, group: Sequence[Sequence[Row]]) -> list[Streams]:
        """Residuals of every pass over every batch of a group, one body at a time on the device."""
        found: list[Streams] = [{} for _ in group]
        plain = [Forward(*forward) for forward in self.passes.forwards]
        forced = list(dict.fromkeys(self._forced.values()))
        steps: tuple[tuple[Side, list[Forward]], ...] = (
            ("base", [f for f in plain if f.body == "base"]),
            ("sft", [f for f in plain if f.body == "sft"] + [f for f in forced if f.body == "sft"]),
            ("base", [f for f in forced if f.body == "base"]),
        )
        for side, forwards in steps:
            if not forwards:
                continue
            with self.models.body(side) as body:
                for batch, streams in zip(group, found, strict=True):
                    for forward in forwards:
                        streams[forward] = self._pass(body, forward, batch, streams)
        return found

    def _pass(self, body: Anatomy, forward: Forward, batch: Sequence[Row], streams: Streams) -> Tensor:
        device = self.models.device
        if forward.onto is not None:
            residuals = streams[Forward(*forward.onto)].to(device)
            return self._kept(forced_outputs(body, residuals, residuals[0]))
        side = forward.embedding
        ids, _ = padded([row.of(side) for row in batch], 0)
        with torch.no_grad():
            embeds = self.models.of(side).anatomy.embedding(ids.to(device))
        return self._kept(residual_stream(body, embeds))

    def _kept(self, stream: Tensor) -> Tensor:
        """Where a group waits for the other body, it waits in main memory."""
        return stream.cpu() if self.models.apart else stream

    def compared(self, run: Run, batch: Sequence[Row], streams: Streams) -> Tensor:
        """[L + 1, N, d_model] residuals of a run at the compared layers and positions."""
        return self._at(streams[Forward(*run.forward)], run.body, batch)

    def forced_outputs(self, pair: Comparison, batch: Sequence[Row], streams: Streams) -> Tensor | None:
        """[L + 1, N, d_model] what the right blocks make of the left run's residuals; None where they are the same."""
        forced = self._forced.get(pair.name)
        return None if forced is None else self._at(streams[forced], "base", batch)

    def _at(self, stream: Tensor, side: Side, batch: Sequence[Row]) -> Tensor:
        rows = torch.cat([torch.full((len(row.positions),), i) for i, row in enumerate(batch)])
        columns = torch.cat([torch.tensor(row.compared(side)) for row in batch])
        layers = torch.tensor(self._places[side])
        picked = stream if len(layers) == len(stream) else stream[layers.to(stream.device)]
        return picked[:, rows.to(stream.device), columns.to(stream.device)].to(self.models.device)


def _refuse_swaps(passes: Passes, models: PairModels, same_tokens: bool) -> None:
    """Refuse runs that put together what does not fit."""
    widths = {side: models.of(side).d_model for side in SIDES}
    for run in passes.runs:
        for what, source in (("embedding", run.embedding), ("unembedding", run.unembedding)):
            if widths[source] != widths[run.body]:
                raise ModelError(
                    f"run {run.name}: the {what} of {source} does not fit the body of {run.body}",
                    value=f"widths {widths[source]} and {widths[run.body]}",
                    valid="runs without swaps, for models of different width",
                )
        if run.embedding != run.body and not same_tokens:
            raise ModelError(
                f"run {run.name}: embeddings cannot be exchanged between models that cut texts into different tokens",
                valid="runs without embedding swaps, or one `tokenizer` for the pair",
            )
