"""Everything that is measured on a batch: geometry of the residuals, and what is read through the lens.

Shapes: L blocks, N compared positions of the batch (all prompts one after the other).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nullarm.protocols.residual.capture import geometry
from nullarm.protocols.residual.capture.batch import Capture, Streams
from nullarm.protocols.residual.capture.lens import Projection, project
from nullarm.protocols.residual.capture.rows import BatchNumbers, Extent, Measured, Ranked
from nullarm.protocols.residual.reading.rows import Row
from nullarm.protocols.residual.runs import Comparison, Run

EFFECTS = ("embedding_effect", "body_effect", "interaction")
"""Their shares are missing where all three are 0."""


@torch.no_grad()
def measure(capture: Capture, batch: Sequence[Row], streams: Streams) -> BatchNumbers:
    """Everything measured on one batch, on the host.

    Args:
        capture: The pair, its passes and its lens.
        batch: Rows.
        streams: Their residuals, from `Capture.streams`.
    """
    found = _Measurement(capture, batch, streams)
    passes = capture.passes
    scalars = {("run", run.name): found.of_run(i, run) for i, run in enumerate(passes.runs)}
    scalars |= {("pair", pair.name): found.of_pair(i, pair) for i, pair in enumerate(passes.comparisons)}
    if passes.factorial and capture.one_width:
        scalars["factorial", "factorial"] = found.factorial(passes.factorial)
    return BatchNumbers(
        extents=[Extent(row.left.prompt, row.left.variant, np.array(row.positions)) for row in batch],
        scalars=scalars,
        ranked=found.ranked() if capture.lens.top_k else {},
        tracked={run.name: found.by_layer(found.read.tracked[i]) for i, run in enumerate(passes.runs)},
        tracked_ids=capture.lens.tracked.cpu().numpy(),
    )


class _Measurement:
    """One batch while it is measured: residuals at the compared positions, and what the lens reads there."""

    def __init__(self, capture: Capture, batch: Sequence[Row], streams: Streams) -> None:
        self._capture, self._batch, self._streams = capture, batch, streams
        self._residuals = {run.name: capture.compared(run, batch, streams) for run in capture.passes.runs}
        self._next = self._following()
        self.read = self._project()

    def of_run(self, index: int, run: Run) -> dict[str, Measured]:
        """Metrics of a run."""
        metrics = geometry.run_metrics(self._residuals[run.name])
        return {
            "norm": _everywhere(metrics["norm"]),
            "norm_delta": _blocks(metrics["norm_delta"]),
            "cosine_prev": _blocks(metrics["cosine_prev"]),
            "entropy": self._lens(self.read.entropy[index]),
            "loss": self._lens_of_next(self.read.loss[index]),
            "rank": self._lens_of_next(self.read.rank[index]),
        }

    def of_pair(self, index: int, pair: Comparison) -> dict[str, Measured]:
        """Metrics of a comparison."""
        read, passes = self.read, self._capture.passes
        left, right = passes.index(pair.left), passes.index(pair.right)
        found = {
            "kl_div": self._lens(read.kl_div[index]),
            "kl_reverse": self._lens(read.kl_reverse[index]),
            "js": self._lens(read.js[index]),
            "entropy_diff": self._lens(read.entropy[right] - read.entropy[left]),
            "loss_diff": self._lens_of_next(read.loss[right] - read.loss[left]),
        }
        if self._capture.lens.top_k:
            found["overlap"] = self._lens(read.overlap[index])
        if self._capture.one_width:
            between = geometry.pair_metrics(self._residuals[pair.left], self._residuals[pair.right])
            found |= {name: _everywhere(values) for name, values in between.items()}
        if self._capture.direct:
            found["direct_diff"] = _everywhere(self._direct_change(pair))
        return found

    def factorial(self, runs: tuple[str, str, str, str]) -> dict[str, Measured]:
        """Effects of embedding and body, and their shares."""
        effects = geometry.factorial(*(self._residuals[name] for name in runs))
        changed = torch.stack([effects[name] for name in EFFECTS]).amax(0) > 0
        return {name: _everywhere(values, None if name in EFFECTS else changed) for name, values in effects.items()}

    def ranked(self) -> dict[tuple[str, str], dict[str, Ranked]]:
        """Top-k lists of every run and comparison."""
        read, passes = self.read, self._capture.passes
        found = {
            ("run", run.name): {"top": self._list(read.top_ids[i], read.top_values[i])}
            for i, run in enumerate(passes.runs)
        }
        for i, pair in enumerate(passes.comparisons):
            found["pair", pair.name] = {
                "increased": self._list(read.up_ids[i], read.up_values[i]),
                "decreased": self._list(read.down_ids[i], read.down_values[i]),
            }
        return found

    def by_layer(self, values: Tensor) -> Any:
        """[L·N, …] to [L, N, …], on the host."""
        layers = self._capture.models.base.layers
        return values.reshape(layers, len(values) // layers, *values.shape[1:]).cpu().numpy()

    def _following(self) -> Tensor:
        """[N] place of the token after each compared position; −1 at the last, and where texts are read apart."""
        following = [
            row.left.ids[place + 1] if place + 1 < len(row.left.ids) and self._capture.same_tokens else -1
            for row in self._batch
            for place in row.positions
        ]
        return self._capture.lens.place(torch.tensor(following, device=self._capture.models.device))

    def _project(self) -> Projection:
        models, lens, passes = self._capture.models, self._capture.lens, self._capture.passes
        states = {  # runs that share a pass are given one tensor, and so are projected once
            run.forward: lens.read(models.of(run.body).anatomy, run.body, self._residuals[run.name][1:])
            for run in passes.runs
        }
        return project(
            [states[run.forward] for run in passes.runs],
            [lens.unembeddings[run.unembedding] for run in passes.runs],
            [(passes.index(pair.left), passes.index(pair.right)) for pair in passes.comparisons],
            top_k=lens.top_k,
            tracked=lens.place(lens.tracked),
            next_ids=self._next.repeat(models.base.layers),
        )

    def _direct_change(self, pair: Comparison) -> Tensor:
        """[L + 1, N]; the same blocks on the same residuals differ in nothing, so nothing is computed for them."""
        left = self._residuals[pair.left]
        forced = self._capture.forced_outputs(pair, self._batch, self._streams)
        other = left.clone() if forced is None else forced
        other[0] = self._residuals[pair.right][0]
        return geometry.norm_diff(left, other)

    def _lens(self, values: Tensor) -> Measured:
        return _blocks(self.by_layer(values))

    def _lens_of_next(self, values: Tensor) -> Measured:
        """A metric that needs the true next token."""
        known = self.by_layer((self._next >= 0).repeat(self._capture.models.base.layers))
        return _blocks(self.by_layer(values), known)

    def _list(self, places: Tensor, values: Tensor) -> Ranked:
        return Ranked(self.by_layer(self._capture.lens.base_ids[places]), self.by_layer(values))


def _everywhere(values: Tensor, present: Tensor | None = None) -> Measured:
    """A metric of all layers, −1 included: [L + 1, N]."""
    host = values.float().cpu().numpy()
    return Measured(host, np.ones(host.shape, np.bool_) if present is None else present.cpu().numpy())


def _blocks(values: Any, present: Any = None) -> Measured:
    """A metric of blocks only, [L, N], with nothing at layer −1."""
    host = np.asarray(values.float().cpu() if isinstance(values, Tensor) else values, np.float32)
    there = np.ones(host.shape, np.bool_) if present is None else present
    return Measured(np.concatenate([np.zeros_like(host[:1]), host]), np.concatenate([np.zeros_like(there[:1]), there]))
