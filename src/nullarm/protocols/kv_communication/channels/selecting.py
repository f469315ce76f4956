"""Which tokens of a batch are sent: the order and proportion of an arm, applied to caches."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from nullarm.models.tasks.base import Item
from nullarm.protocols.kv_communication.channels.participants import Participant
from nullarm.protocols.kv_communication.communication.exchange import Heard
from nullarm.protocols.kv_communication.communication.fuse import Contribution, together
from nullarm.protocols.kv_communication.communication.prefill import Prefilled, prefill
from nullarm.protocols.kv_communication.parameters import Order
from nullarm.protocols.kv_communication.selection import scores
from nullarm.protocols.kv_communication.selection.order import choose
from nullarm.protocols.kv_communication.selection.queries import Queries, captured_queries
from nullarm.study.identity import content_hash

BY_PLACE = ("front", "back", "middle", "random")
OF_THE_RECEIVER = ("delta", "two_round")
"""Scores of the receiver's tokens; the others are the sharer's."""


@dataclass(frozen=True)
class Read:
    """What a model has read: its cache, and its queries where a score needs them."""

    cache: Prefilled
    queries: Queries | None = None


@dataclass(frozen=True)
class Selecting:
    """Order and proportion of an arm.

    Attributes:
        order: Which tokens.
        proportion: How many of those that could be fused.
        seed: For `random`; each item draws for itself.
    """

    order: Order
    proportion: float
    seed: int

    def receiver_reads(self, who: Participant, rows: Sequence[Sequence[int]]) -> Read:
        """The receiver's cache, with its queries where it asks for tokens by its own attention."""
        return _read(who, rows, self._scores_by("two_round"))

    def sharer_reads(self, who: Participant, rows: Sequence[Sequence[int]]) -> Read:
        """A sharer's cache, with its queries where its own attention decides."""
        return _read(who, rows, self._scores_by("expected_attention"))

    def kept(
        self, items: Sequence[Item], heard: Sequence[Heard], own: Read, sharer: Read, all_of_it: Contribution
    ) -> list[Heard]:
        """What the sharer is heard of: tokens that are not sent are not fused.

        Args:
            items: What is asked.
            heard: What could be fused.
            own: What the receiver has read.
            sharer: What the sharer has read.
            all_of_it: The sharer's whole cache as it is, for the oracle.
        """
        if self.proportion == 1:
            return list(heard)
        table = None if self.order in BY_PLACE else self._scores(own, sharer, all_of_it)
        return [
            self._one(item, h, None if table is None else row)
            for item, h, row in zip(items, heard, [None] * len(heard) if table is None else table.tolist(), strict=True)
        ]

    def _one(self, item: Item, heard: Heard, row: list[float] | None) -> Heard:
        """One item's; `row` are scores over the padded tokens of the model that scores."""
        candidates = [place for place, token in enumerate(heard.source) if token >= 0]
        scored = None
        if row is not None and self.order in OF_THE_RECEIVER:
            start = len(row) - (len(heard.source) - 1)
            scored = [row[start + place] for place in candidates]
        elif row is not None:
            start = len(row) - len(heard.ids)
            scored = [row[start + heard.source[place]] for place in candidates]
        rng = np.random.default_rng([self.seed, int(content_hash(item.id)[:15], 16)])
        kept = set(choose(self.order, self.proportion, candidates, scores=scored, rng=rng))
        return Heard(heard.ids, [token if place in kept else -1 for place, token in enumerate(heard.source)])

    def _scores(self, own: Read, sharer: Read, all_of_it: Contribution) -> Tensor:
        """[batch, tokens] of the model that scores."""
        streams = dict(enumerate(sharer.cache.kv))
        match self.order:
            case "key_norm":
                return scores.key_norm(streams, sharer.cache.mask)
            case "value_norm":
                return scores.value_norm(streams, sharer.cache.mask)
            case "expected_attention":
                return scores.expected_attention(streams, sharer.cache.mask, _there(sharer.queries))
            case "delta":
                return scores.delta(own.cache.kv, together(own.cache, [all_of_it]).kv, own.cache.mask)
            case "two_round":
                return scores.last_attention(dict(enumerate(own.cache.kv)), own.cache.mask, _there(own.queries))
        raise ValueError(f"order {self.order} has no scores")

    def _scores_by(self, order: Order) -> bool:
        return self.order == order and self.proportion < 1


def _read(who: Participant, rows: Sequence[Sequence[int]], with_queries: bool) -> Read:
    layers = range(who.geometry.layers)
    with captured_queries(who.model, layers) if with_queries else nullcontext() as queries:
        return Read(prefill(who.model, rows), queries)


def _there(queries: Queries | None) -> Queries:
    if queries is None:
        raise ValueError("queries were not picked up")
    return queries
