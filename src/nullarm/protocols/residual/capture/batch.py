"""Measuring a batch of prompts: every run forward once, projected once, every comparison taken from that.

On the device everything stays until a batch is done. Shapes: L blocks, N compared positions of the batch (all prompts
one after the other), R runs, C comparisons.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nullarm.errors import ModelError
from nullarm.models.anatomy import Anatomy
from nullarm.models.residual_stream import forced_outputs, residual_stream
from nullarm.protocols.residual.capture import geometry
from nullarm.protocols.residual.capture.lens import Projection, Unembedding, project, unembedding_of
from nullarm.protocols.residual.capture.pair_models import PairModels
from nullarm.protocols.residual.capture.rows import BatchNumbers, Extent, Measured, Ranked
from nullarm.protocols.residual.capture.tuned_lens import Translators
from nullarm.protocols.residual.reading.alignment import SharedVocabulary
from nullarm.protocols.residual.reading.rows import Row
from nullarm.protocols.residual.reading.tokens import padded
from nullarm.protocols.residual.runs import SIDES, Comparison, Passes, Run, Side

EFFECTS = ("embedding_effect", "body_effect", "interaction")
"""Their shares are missing where all three are 0."""


class Forward(NamedTuple):
    """One pass: whose body, whose embedding; forced onto the residuals of another pass when `onto` is given."""

    body: Side
    embedding: Side
    onto: tuple[Side, Side] | None = None


Streams = dict[Forward, Tensor]
"""[layers + 1, batch, position, d_model] of each pass."""


@dataclass(frozen=True)
class Lens:
    """How residuals become logits.

    Attributes:
        unembeddings: Vocabulary projection of each side, over the shared tokens.
        base_ids: [V] base token id of each shared token.
        translators: Of each side; None unless the lens is tuned.
        normed: Whether the body's final norm comes before the projection.
        top_k: Tokens kept of each list.
        tracked: Ids (of the base) whose logits are followed.
    """

    unembeddings: Mapping[Side, Unembedding]
    base_ids: Tensor
    translators: Mapping[Side, Translators] | None
    normed: bool
    top_k: int
    tracked: Tensor

    @cached_property
    def places(self) -> Tensor:
        """[largest base id + 2] place of each base id among the shared tokens; −1 where it is not shared."""
        places = torch.full((int(self.base_ids.max()) + 2,), -1, device=self.base_ids.device)
        places[self.base_ids] = torch.arange(len(self.base_ids), device=self.base_ids.device)
        return places

    def place(self, ids: Tensor) -> Tensor:
        """Places of base ids among the shared tokens; −1 for any other, and for −1."""
        return self.places[ids.clamp(-1, len(self.places) - 1)]

    def read(self, anatomy: Anatomy, side: Side, stream: Tensor) -> Tensor:
        """[L·N, d_model] states to project, from [L, N, d_model] residuals of the blocks."""
        if self.translators is not None:
            translators = self.translators[side]
            stream = torch.stack([translators.apply(layer, h) for layer, h in enumerate(stream)])
        states: Tensor = anatomy.final_norm(stream) if self.normed else stream
        return states.flatten(0, 1).to(self.base_ids.device)


class Capture:
    """Measures batches of one pair of models.

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
        self._comparable = models.base.d_model == models.sft.d_model
        same_depth = models.base.layers == models.sft.layers
        self._same_tokens = same_tokens
        self._direct = direct_change and self._comparable and same_depth and same_tokens
        self._forced = {
            c.name: Forward(right.body, right.embedding, left.forward)
            for c in passes.comparisons
            for left, right in [(passes.run(c.left), passes.run(c.right))]
            if self._direct and left.body != right.body
        }
        _refuse_swaps(passes, models, same_tokens)

    @property
    def refused(self) -> dict[str, str]:
        """Metrics that these two models do not have, each with the reason."""
        found: dict[str, str] = {}
        base, sft = self.models.base, self.models.sft
        if not self._comparable:
            why = f"the residual streams have different widths, {base.d_model} and {sft.d_model}"
            found |= dict.fromkeys(("cosine", "norm_diff", "relative_diff", "direct_diff", "mean_difference"), why)
        elif base.layers != sft.layers:
            found["direct_diff"] = f"the models have different depths, {base.layers} and {sft.layers}"
        if not self._same_tokens:
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

    @torch.no_grad()
    def numbers(self, batch: Sequence[Row], streams: Streams) -> BatchNumbers:
        """Everything measured on one batch.

        Args:
            batch: Rows.
            streams: Its residuals, from `streams`.
        """
        device = self.models.device
        compared = {run.name: self.compared(run, batch, streams) for run in self.passes.runs}
        projection = self._project(compared, batch)
        scalars = self._run_scalars(compared, projection, batch)
        for index, comparison in enumerate(self.passes.comparisons):
            scalars["pair", comparison.name] = self._pair_scalars(
                index, comparison, compared, projection, streams, batch
            )
        if (factorial := self.passes.factorial) and self._comparable:
            effects = geometry.factorial(*(compared[name].to(device) for name in factorial))
            changed = torch.stack([effects[name] for name in EFFECTS]).amax(0) > 0
            scalars["factorial", "factorial"] = {
                n: _everywhere(values, None if n in EFFECTS else changed) for n, values in effects.items()
            }
        return BatchNumbers(
            extents=[Extent(row.left.prompt, row.left.variant, np.array(row.positions)) for row in batch],
            scalars=scalars,
            ranked=self._ranked(projection) if self.lens.top_k else {},
            tracked={run.name: self._by_layer(projection.tracked[i]) for i, run in enumerate(self.passes.runs)},
            tracked_ids=self.lens.tracked.cpu().numpy(),
        )

    def compared(self, run: Run, batch: Sequence[Row], streams: Streams) -> Tensor:
        """[L + 1, N, d_model] residuals of a run at the compared layers and positions."""
        return self._at(streams[Forward(*run.forward)], run.body, batch)

    def _at(self, stream: Tensor, side: Side, batch: Sequence[Row]) -> Tensor:
        rows = torch.cat([torch.full((len(row.positions),), i) for i, row in enumerate(batch)])
        columns = torch.cat([torch.tensor(row.compared(side)) for row in batch])
        layers = torch.tensor(self._places[side])
        picked = stream if len(layers) == len(stream) else stream[layers.to(stream.device)]
        return picked[:, rows.to(stream.device), columns.to(stream.device)].to(self.models.device)

    def _project(self, compared: Mapping[str, Tensor], batch: Sequence[Row]) -> Projection:
        runs = self.passes.runs
        read = {
            (run.forward, run.body): self.lens.read(self.models.of(run.body).anatomy, run.body, compared[run.name][1:])
            for run in runs
        }
        layers = len(self._places["base"]) - 1
        return project(
            [read[run.forward, run.body] for run in runs],
            [self.lens.unembeddings[run.unembedding] for run in runs],
            [(self.passes.index(c.left), self.passes.index(c.right)) for c in self.passes.comparisons],
            top_k=self.lens.top_k,
            tracked=self.lens.place(self.lens.tracked),
            next_ids=self._next(batch).repeat(layers),
        )

    def _next(self, batch: Sequence[Row]) -> Tensor:
        """[N] place of the token after each compared position; −1 at the last, and where texts are read apart."""
        following = [
            row.left.ids[place + 1] if place + 1 < len(row.left.ids) and self._same_tokens else -1
            for row in batch
            for place in row.positions
        ]
        return self.lens.place(torch.tensor(following, device=self.models.device))

    def _run_scalars(
        self, compared: Mapping[str, Tensor], projection: Projection, batch: Sequence[Row]
    ) -> dict[tuple[str, str], dict[str, Measured]]:
        found, known = {}, self._known(batch)
        for i, run in enumerate(self.passes.runs):
            metrics = geometry.run_metrics(compared[run.name])
            found["run", run.name] = {
                "norm": _everywhere(metrics["norm"]),
                "norm_delta": _blocks(metrics["norm_delta"]),
                "cosine_prev": _blocks(metrics["cosine_prev"]),
                "entropy": _blocks(self._by_layer(projection.entropy[i])),
                "loss": _blocks(self._by_layer(projection.loss[i]), known),
                "rank": _blocks(self._by_layer(projection.rank[i]), known),
            }
        return found

    def _pair_scalars(
        self, index: int, comparison: Comparison, compared: Mapping[str, Tensor], projection: Projection,
        streams: Streams, batch: Sequence[Row],
    ) -> dict[str, Measured]:  # fmt: skip
        left, right = self.passes.index(comparison.left), self.passes.index(comparison.right)
        found = {
            "kl_div": _blocks(self._by_layer(projection.kl_div[index])),
            "kl_reverse": _blocks(self._by_layer(projection.kl_reverse[index])),
            "js": _blocks(self._by_layer(projection.js[index])),
            "entropy_diff": _blocks(self._by_layer(projection.entropy[right] - projection.entropy[left])),
            "loss_diff": _blocks(self._by_layer(projection.loss[right] - projection.loss[left]), self._known(batch)),
        }
        if self.lens.top_k:
            found["overlap"] = _blocks(self._by_layer(projection.overlap[index]))
        if self._comparable:
            between = geometry.pair_metrics(compared[comparison.left], compared[comparison.right])
            found |= {name: _everywhere(values) for name, values in between.items()}
        if self._direct:
            found["direct_diff"] = _everywhere(self._direct_change(comparison, compared, streams, batch))
        return found

    def _direct_change(
        self, comparison: Comparison, compared: Mapping[str, Tensor], streams: Streams, batch: Sequence[Row]
    ) -> Tensor:
        """[L + 1, N]; the same blocks on the same residuals differ in nothing, so nothing is computed for them."""
        left = compared[comparison.left]
        forced = self._forced.get(comparison.name)
        other = left.clone() if forced is None else self._at(streams[forced], "base", batch)
        other[0] = compared[comparison.right][0]
        return geometry.norm_diff(left, other)

    def _ranked(self, projection: Projection) -> dict[tuple[str, str], dict[str, Ranked]]:
        found = {
            ("run", run.name): {"top": self._list(projection.top_ids[i], projection.top_values[i])}
            for i, run in enumerate(self.passes.runs)
        }
        for i, comparison in enumerate(self.passes.comparisons):
            found["pair", comparison.name] = {
                "increased": self._list(projection.up_ids[i], projection.up_values[i]),
                "decreased": self._list(projection.down_ids[i], projection.down_values[i]),
            }
        return found

    def _list(self, places: Tensor, values: Tensor) -> Ranked:
        return Ranked(self._by_layer(self.lens.base_ids[places]), self._by_layer(values))

    def _known(self, batch: Sequence[Row]) -> Any:
        """[L, N] whether there is a true next token."""
        return self._by_layer((self._next(batch) >= 0).repeat(self.models.base.layers))

    def _by_layer(self, values: Tensor) -> Any:
        """[L·N, …] to [L, N, …], on the host."""
        layers = len(self._places["base"]) - 1
        return values.reshape(layers, len(values) // layers, *values.shape[1:]).cpu().numpy()


def lens_of(
    models: PairModels, shared: SharedVocabulary, kind: str, translators: Mapping[Side, Translators] | None, *,
    top_k: int, tracked: Sequence[int],
) -> Lens:  # fmt: skip
    """The lens of a pair over the tokens that both models have.

    Args:
        models: Both models.
        shared: The shared tokens.
        kind: `raw`, `norm` or `tuned`.
        translators: Of each side, for `tuned`.
        top_k: Tokens kept of each list.
        tracked: Base ids whose logits are followed.

    Raises:
        ModelError: There are fewer shared tokens than `top_k`.
    """
    device, ids = models.device, {"base": shared.left_ids, "sft": shared.right_ids}
    if top_k > len(shared.left_ids):
        raise ModelError("top_k is larger than the vocabulary", value=top_k, valid=f"up to {len(shared.left_ids)}")
    unembeddings = {
        side: unembedding_of(models.of(side).anatomy).to(device).rows(torch.from_numpy(ids[side]).to(device))
        for side in SIDES
    }
    base_ids = torch.from_numpy(shared.left_ids).to(device)
    return Lens(unembeddings, base_ids, translators, kind != "raw", top_k, torch.tensor(tracked, device=device).long())


def _everywhere(values: Tensor, present: Tensor | None = None) -> Measured:
    """A metric of all layers, −1 included: [L + 1, N]."""
    host = values.float().cpu().numpy()
    return Measured(host, np.ones(host.shape, np.bool_) if present is None else present.cpu().numpy())


def _blocks(values: Any, present: Any = None) -> Measured:
    """A metric of blocks only, [L, N], with nothing at layer −1."""
    host = np.asarray(values.float().cpu() if isinstance(values, Tensor) else values, np.float32)
    there = np.ones(host.shape, np.bool_) if present is None else present
    return Measured(np.concatenate([np.zeros_like(host[:1]), host]), np.concatenate([np.zeros_like(there[:1]), there]))


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
