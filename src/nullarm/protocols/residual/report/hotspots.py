"""Where a capture found the largest change: single positions, and the layers that made it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from nullarm.protocols.residual.report.captured import Captured
from nullarm.protocols.residual.tables import SCALARS_NAME
from nullarm.store.record import FinishedCell

PLACE = ("prompt", "variant", "layer", "position")


@dataclass(frozen=True)
class Hotspot:
    """One place of the primary comparison.

    Attributes:
        layer: −1 is the embedding output, k the output of block k.
        position: Position in the prompt, by the base tokeniser.
        token: Decoded token at that position.
        prompt: Index of the prompt.
        variant: Its variant.
        value: The metric there.
    """

    layer: int
    position: int
    token: str
    prompt: int
    variant: str
    value: float


def hotspots(finished: FinishedCell, metric: str = "direct_diff", top: int = 5) -> list[Hotspot]:
    """The places where a metric of the primary comparison is largest, the largest first.

    Of equal values the first in the table comes first. A value of 0 is no hotspot, so a model has none against itself.

    Args:
        finished: A finished capture.
        metric: One of `tables.PAIR_METRICS`.
        top: How many.

    Raises:
        IntegrityError: An artefact is not what its hash says.
    """
    return largest(Captured(finished), metric, top)


def layer_shares(finished: FinishedCell) -> dict[int, float]:
    """Share of the summed squared `direct_diff` of the primary comparison that each layer made, by layer.

    Summed over all prompts, variants and positions. `direct_diff` is what a block changes by itself, so a change in one
    layer's weights has its share at that layer; layer −1 is the embedding. Empty when nothing changed anywhere, or when
    it was not measured.

    Args:
        finished: A finished capture.

    Raises:
        IntegrityError: An artefact is not what its hash says.
    """
    return shares(Captured(finished))


def largest(captured: Captured, metric: str, top: int, variants: tuple[str, ...] = ()) -> list[Hotspot]:
    """`hotspots` of what is open already, under the given variants only when there are any."""
    best: list[tuple[float, tuple[int, str, int, int]]] = []
    for batch in _pairs(captured, [*PLACE, metric], variants):
        values = _floats(batch, metric)
        leading = [i for i in np.argsort(-values, kind="stable")[:top].tolist() if values[i] > 0]
        places = zip(*(batch[name].take(pa.array(leading, pa.int64())).to_pylist() for name in PLACE), strict=True)
        best += zip(values[leading].tolist(), places, strict=True)
        best = sorted(best, key=lambda found: -found[0])[:top]
    return [
        Hotspot(layer, position, captured.tokens(prompt, variant)[position], prompt, variant, value)
        for value, (prompt, variant, layer, position) in best
    ]


def shares(captured: Captured) -> dict[int, float]:
    """`layer_shares` of what is open already."""
    sums: dict[int, float] = {}
    for batch in _pairs(captured, ["layer", "direct_diff"]):
        squares = np.square(_floats(batch, "direct_diff"))
        layers = batch["layer"].to_numpy().astype(np.int64)
        known = ~np.isnan(squares)
        for layer, total in enumerate(np.bincount(layers[known] + 1, weights=squares[known]).tolist(), start=-1):
            sums[layer] = sums.get(layer, 0.0) + total
    whole = sum(sums.values())
    return {layer: value / whole for layer, value in sorted(sums.items())} if whole > 0 else {}


def _pairs(captured: Captured, columns: list[str], variants: tuple[str, ...] = ()) -> Iterator[pa.RecordBatch]:
    """Rows of the primary comparison."""
    where: Mapping[str, tuple[str, ...]] = {"variant": variants} if variants else {}
    primary = captured.passes.primary.name
    for batch in captured.batches(SCALARS_NAME, columns, kind=["pair"], record=[primary], **where):
        if batch.num_rows:
            yield batch


def _floats(batch: pa.RecordBatch, name: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """A column as numbers, NaN where it is null."""
    values: np.ndarray[tuple[int], np.dtype[np.float64]] = batch[name].to_numpy(zero_copy_only=False).astype(np.float64)
    return values
