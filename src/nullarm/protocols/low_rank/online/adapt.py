"""Adapting the shared bases of a compressed model on a stream, from its drift away from the original.

The drift D `[tokens, in]` of a group is what it reads in the compressed model − what it reads in the original at the
same tokens. Each block of tokens is read by both; then every basis takes a step of Oja's rule on its drift, and the
factors become the projection W Pᵀ of the original weights on it.

What this promises: P goes towards the directions in which the inputs drift most. It follows no loss. Those directions
are neither the ones that carry most of the weights, from which P starts, nor those that carry most of the inputs;
turning to them costs error of weights (Eckart and Young 1936), and can make the model worse. And as bases move, so does
the drift, so Oja's theorem, which speaks of a fixed distribution, says nothing of the whole. The controls tell whether
the direction matters (`random`), whether the way there does (`offline_refit`), and what moving at all is worth
(`frozen`). A group that reads what no compressed matrix has touched, such as q, k and v of the first layer, has no
drift, and is never changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from nullarm.errors import DatasetError, ModelError
from nullarm.protocols.low_rank.factored.factors import Compressed, Factors, Rounded
from nullarm.protocols.low_rank.online.drift import Key, drifts
from nullarm.protocols.low_rank.online.group import AdaptedGroup
from nullarm.protocols.low_rank.online.settings import OnlineSettings
from nullarm.protocols.low_rank.slots import linear


def adapt(
    original: Any,
    compressed: Compressed,
    batches: Iterable[Tensor],
    settings: OnlineSettings,
    generator: torch.Generator,
) -> tuple[Compressed, list[dict[str, Any]]]:
    """Adapt the bases of a compressed model.

    A block takes two forward passes, and for each group some 4 · rank · in · (tokens + rank) + 2 · out · rank · in
    operations; `offline_refit` takes `[in, in]` numbers in float64 and one decomposition of them for each group.

    Args:
        original: The causal LM as it is loaded, in evaluation mode; afterwards it is as before.
        compressed: Its factors, of method grc, without a gauge.
        batches: Token ids `[batch, position]` of the train split, in windows without padding.
        settings: How.
        generator: Source of random directions.

    Returns:
        The factors, in the dtypes and on the devices of those given; what did not move is what was given. And for each
        block and group `block` (from 1), `layer`, `slots` (joined by `+`), `rate` (η), `drift` (the norm of D ÷ that of
        the original's inputs, before the block's step), `turned` (the root mean square sine of the principal angles
        between the basis after the step and at the start).

    Raises:
        ModelError: A group is of another method, or gauged: its factors are no orthogonal projection of its weights.
        DatasetError: The stream has too few blocks.
    """
    groups = {key: _adapted(original, key, matrices, settings) for key, matrices in compressed.items()}
    history: list[dict[str, Any]] = []
    block = 0
    for block, ids in enumerate(islice(_blocks(batches, settings.block_tokens), settings.blocks), start=1):
        now: Compressed = {key: group.factors for key, group in groups.items()}
        for key, drift, norm in drifts(original, now, ids):
            groups[key].learn(drift, block, generator)
            history.append({
                "block": block, "layer": key[0], "slots": "+".join(key[1]), "rate": settings.c / block,
                "drift": float(drift.norm() / norm), "turned": groups[key].turned,
            })  # fmt: skip
    if block < settings.blocks:
        raise DatasetError(
            f"the stream has too few blocks of {settings.block_tokens} tokens", value=block,
            valid=f"at least online.blocks, {settings.blocks}",
            next_command="raise calibration_tokens, or lower online.blocks",
        )  # fmt: skip
    return {key: group.factors for key, group in groups.items()}, history


def _adapted(original: Any, key: Key, matrices: Factors | Rounded, settings: OnlineSettings) -> AdaptedGroup:
    layer, slots = key
    if isinstance(matrices, Factors):
        group = AdaptedGroup(matrices, [linear(original, layer, slot).weight for slot in slots], settings)
        if group.is_projection:
            return group
    raise ModelError(
        f"layer {layer} {'+'.join(slots)} has no basis to adapt: it is no orthogonal projection of its weights",
        value="rounded" if isinstance(matrices, Rounded) else "factors that are weighed or gauged",
        valid="method grc without a gauge, or with g = 1",
    )


def _blocks(batches: Iterable[Tensor], tokens: int) -> Iterator[Tensor]:
    """Rows of each batch, as many as make so many tokens, one at least."""
    for batch in batches:
        yield from torch.split(batch, max(1, tokens // batch.shape[1]))
