"""Fusion as the original does it: while the receiver reads, section by section (legacy)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from nullarm.models.anatomy import Anatomy, anatomy
from nullarm.protocols.kv_communication.communication.alignment import NOTHING
from nullarm.protocols.kv_communication.communication.fuse import Combine, Contribution, fused
from nullarm.protocols.kv_communication.communication.prefill import (
    Prefilled,
    advance,
    cache_of,
    kv_of,
    padded,
    positions_of,
)
from nullarm.protocols.kv_communication.fuser.projector import KV


def as_it_goes(
    model: Any,
    ids: Sequence[Sequence[int]],
    contributions: Sequence[Contribution],
    *,
    combine: Combine = "sequential",
) -> Prefilled:
    """The receiver's cache, later sections of it reading what was fused before.

    A section is a run of tokens that the same sharers, or none, give something to. The receiver runs over it on its
    cache so far, and its part of the cache is fused before the next section is run. So, unlike in `together`, a token
    that is not fused itself still hears of the fused ones before it.

    Args:
        model: The receiver, in evaluation mode. Gradients are the caller's to allow or not.
        ids: The prompts but for their last tokens.
        contributions: One per sharer.
        combine: As for `together`.

    Raises:
        ModelError: The model's class is not known.
    """
    parts = anatomy(model)
    tokens, real = padded(ids, parts.model.device, side="left")
    sections = _sections(real, [c.source for c in contributions])
    so_far = Prefilled([], real[:, :0], positions_of(real[:, :0]))
    for n in range(max(1, *map(len, sections))):
        columns, mask = padded([row[n] if n < len(row) else () for row in sections], real.device, side="right")
        new = _new_kv(parts, so_far, tokens.gather(1, columns), mask)
        given = [replace(c, source=c.source.gather(1, columns).where(mask, NOTHING)) for c in contributions]
        so_far = _joined(so_far, fused(new, given, combine), mask)
    return so_far


def _sections(real: Tensor, sources: Sequence[Tensor]) -> list[list[range]]:
    """For every row, its sections as columns of the padded batch, in order."""
    sharers = torch.stack([(source >= 0).long() << bit for bit, source in enumerate(sources)]).sum(0)
    return [list(_runs(row)) for row in sharers.where(real, NOTHING).tolist()]


def _runs(labels: Sequence[int]) -> Iterator[range]:
    start = 0
    for label, run in groupby(labels):
        stop = start + len(list(run))
        if label != NOTHING:
            yield range(start, stop)
        start = stop


def _new_kv(parts: Anatomy, so_far: Prefilled, tokens: Tensor, mask: Tensor) -> list[KV]:
    cache, known = cache_of(so_far.kv), so_far.mask.shape[1]
    advance(parts, cache, so_far.mask, tokens, mask)
    return [(key[:, :, known:], value[:, :, known:]) for key, value in kv_of(cache)]


def _joined(so_far: Prefilled, new: Sequence[KV], mask: Tensor) -> Prefilled:
    """The cache with new tokens behind the old ones, and all padding on the left again."""
    whole = torch.cat([so_far.mask, mask], dim=1)
    width = max(1, int(whole.sum(1).max()))
    order = whole.int().argsort(dim=1, stable=True)[:, -width:]

    def joined(old: Tensor, added: Tensor) -> Tensor:
        both = torch.cat([old, added], dim=2)
        return both.gather(2, order[:, None, :, None].expand(-1, both.shape[1], -1, both.shape[3]))

    known = so_far.kv or [(key[:, :, :0], value[:, :, :0]) for key, value in new]
    kv = [(joined(k0, k), joined(v0, v)) for (k0, v0), (k, v) in zip(known, new, strict=True)]
    packed = whole.gather(1, order)
    return Prefilled(kv, packed, positions_of(packed))
