"""Which tokens of a batch are sent: the order and proportion of an arm, applied to caches."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from torch import Tensor

from nullarm.models.tasks.base import Item
from nullarm.protocols.kv_communication.channels.participants import Participant
from nullarm.protocols.kv_communication.communication.exchange import Heard
from nullarm.protocols.kv_communication.communication.fuse import Contribution, together
from nullarm.protocols.kv_communication.communication.prefill import Prefilled, prefill, without_last
from nullarm.protocols.kv_communication.fuser import Fuser
from nullarm.protocols.kv_communication.parameters import BY_PLACE, Order
from nullarm.protocols.kv_communication.selection import scores
from nullarm.protocols.kv_communication.selection.order import choose
from nullarm.protocols.kv_communication.selection.queries import Queries, captured_queries
from nullarm.study.identity import content_hash

T = TypeVar("T")

OF_THE_RECEIVER: tuple[Order, ...] = ("delta", "two_round")
"""Scores of the receiver's tokens; the others are the sharer's."""


@dataclass(frozen=True)
class Read:
    """What a model has read.

    Attributes:
        cache: Its cache; the receiver's without the last token of the prompt.
        queries: Where a score needs them.
        asks: The receiver's attention to each token of its cache, where that is what it asks for.
    """

    cache: Prefilled
    queries: Queries | None = None
    asks: Tensor | None = None


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

    def by(self, *orders: Order) -> bool:
        """Whether tokens are chosen, and in one of these orders."""
        return self.proportion < 1 and self.order in orders

    @property
    def by_the_receiver(self) -> bool:
        """Whether the receiver's own cache has a say."""
        return self.by(*OF_THE_RECEIVER)

    def receiver_reads(self, who: Participant, prompts: Sequence[Sequence[int]]) -> Read:
        """The receiver's cache of the prompts but for their last tokens, and what it asks for.

        It asks by the attention of the very last token, from which the answer starts, and so reads that one too.
        """
        if not self.by("two_round"):
            return Read(prefill(who.model, [ids[:-1] for ids in prompts]))
        with captured_queries(who.model, range(who.geometry.layers)) as queries:
            whole = prefill(who.model, prompts)
        asks = scores.last_attention(dict(enumerate(whole.kv)), whole.mask, queries)
        return Read(without_last(whole), asks=asks[:, :-1])

    def sharer_reads(self, who: Participant, rows: Sequence[Sequence[int]], fuser: Fuser) -> Read:
        """A sharer's cache, with its queries where its own attention decides."""
        wanted = self.by("expected_attention")
        with captured_queries(who.model, _layers_of(fuser)) if wanted else nullcontext() as queries:
            return Read(prefill(who.model, rows), queries)

    def kept(
        self, items: Sequence[Item], heard: Sequence[Heard], own: Read | None, sharer: Read, all_of_it: Contribution
    ) -> list[Heard]:
        """What the sharer is heard of: tokens that are not sent are not fused.

        Args:
            items: What is asked.
            heard: What could be fused.
            own: What the receiver has read, where that has a say.
            sharer: What the sharer has read.
            all_of_it: The sharer's whole cache as it is, for the oracle.
        """
        if self.proportion == 1:
            return list(heard)
        rows = [None] * len(heard) if self.order in BY_PLACE else self._scores(own, sharer, all_of_it).tolist()
        return [self._one(item, h, row) for item, h, row in zip(items, heard, rows, strict=True)]

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

    def _scores(self, own: Read | None, sharer: Read, all_of_it: Contribution) -> Tensor:
        """[batch, tokens] of the model that scores; the sharer's by the layers that the fuser reads."""
        streams = {layer: sharer.cache.kv[layer] for layer in _layers_of(all_of_it.fuser)}
        match self.order:
            case "key_norm":
                return scores.key_norm(streams, sharer.cache.mask)
            case "value_norm":
                return scores.value_norm(streams, sharer.cache.mask)
            case "expected_attention":
                return scores.expected_attention(streams, sharer.cache.mask, _there(sharer.queries))
            case "delta":
                before = _there(own).cache
                return scores.delta(before.kv, together(before, [all_of_it]).kv, before.mask)
            case "two_round":
                return _there(_there(own).asks)
        raise ValueError(f"order {self.order} has no scores")


def _layers_of(fuser: Fuser) -> list[int]:
    """Those of the sharer that the fuser reads."""
    return sorted({stream.layer for stream in fuser.streams()})


def _there(part: T | None) -> T:
    if part is None:
        raise ValueError("what the score needs was not read")
    return part
