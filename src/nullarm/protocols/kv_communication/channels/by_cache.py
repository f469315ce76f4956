"""Cache-to-cache: the sharers' caches cross the wire as bytes, and the receiver answers from the fused one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from nullarm.models.tasks.base import Item
from nullarm.protocols.kv_communication.channels.asked import Answered, Answerer, Answering, Asked, Clock
from nullarm.protocols.kv_communication.channels.participants import Participant
from nullarm.protocols.kv_communication.channels.selecting import Read, Selecting
from nullarm.protocols.kv_communication.communication.as_it_goes import as_it_goes
from nullarm.protocols.kv_communication.communication.exchange import Exchange, Heard, exchanges, overheard
from nullarm.protocols.kv_communication.communication.fuse import Combine, Contribution, source_index, together
from nullarm.protocols.kv_communication.communication.prefill import Prefilled, refuse_too_long
from nullarm.protocols.kv_communication.communication.transmission import messages_of, received
from nullarm.protocols.kv_communication.fuser import Fuser
from nullarm.protocols.kv_communication.geometry import Geometry, Stream
from nullarm.protocols.kv_communication.parameters import Alignment
from nullarm.protocols.kv_communication.selection.request import decode_request, encode_request
from nullarm.protocols.kv_communication.wire.codec import Codec
from nullarm.protocols.kv_communication.wire.message import decode_many, encode_many
from nullarm.protocols.kv_communication.wire.size import message_bytes


@dataclass(frozen=True)
class Wire:
    """How a cache is written.

    Attributes:
        codec: The codec.
        bits: Widths by stream, in place of the codec's own.
    """

    codec: Codec
    bits: Mapping[Stream, int] | None = None

    def size(self, geometry: Geometry, streams: Sequence[Stream], tokens: int, places: Sequence[int]) -> int | None:
        """What the formula says a message takes, bytes."""
        contiguous = not places or places[-1] - places[0] + 1 == len(places)
        return message_bytes(
            geometry,
            self.codec,
            streams=streams,
            tokens=tokens,
            sent=len(places),
            contiguous=contiguous,
            bits=self.bits,
        )


@dataclass(frozen=True)
class Sender:
    """A sharer with the fuser that reads it."""

    sharer: Participant
    fuser: Fuser


@dataclass(frozen=True)
class Sent:
    """What one sender gave to a batch, and what it took, item by item."""

    contribution: Contribution
    message_bytes: list[int]
    formula_bytes: list[int | None]
    request_bytes: list[int]
    sent_tokens: list[int]


@dataclass(frozen=True)
class ByCache(Answerer):
    """Encode → bytes → decode for every item; the receiver never sees anything else of the sharers.

    Attributes:
        receiver: The model that answers.
        senders: Whose caches are sent, in the order in which they are fused.
        wire: How.
        selecting: Which tokens.
        answering: How answers are taken.
        sharer_cache: `own`, `zeroed`, or `shuffled` (the sharers hear the other item).
        alignment: Of tokens across tokenisers.
        combine: Of several sharers.
        legacy_fusion: Fuse section by section, as the original did.
    """

    receiver: Participant
    senders: tuple[Sender, ...]
    wire: Wire
    selecting: Selecting
    answering: Answering
    sharer_cache: str = "own"
    alignment: Alignment = "offsets"
    combine: Combine = "sequential"
    legacy_fusion: bool = False

    def answer(self, batch: Sequence[Asked]) -> list[Answered]:
        """The receiver's answers from the fused caches."""
        clock, items = Clock(), [a.item for a in batch]
        exchanges = self._exchanges(batch)
        questions = self.answering.questions(self.receiver, items, [e.receiver for e in exchanges])
        prompts, own = [e.receiver_ids for e in exchanges], None
        if not self.legacy_fusion or self.selecting.by_the_receiver:
            with clock("receiver_s"):
                own = self.selecting.receiver_reads(self.receiver, prompts)
        sent = [self._send(n, items, exchanges, own, clock) for n in range(len(self.senders))]
        cache = self._fused(prompts, own, [s.contribution for s in sent], clock)
        with clock("answer_s"):
            answers = self.answering.answers(self.receiver, cache, questions)
        rows = zip(items, exchanges, answers, strict=True)
        return [
            Answered(
                item, right, said, likelihood,
                counts={"output_tokens": tokens} | _counts(e, sent, n),
                seconds=clock.each(len(batch)),
            )
            for n, (item, e, (right, said, likelihood, tokens)) in enumerate(rows)
        ]  # fmt: skip

    def _exchanges(self, batch: Sequence[Asked]) -> list[Exchange]:
        tokenizers = [sender.sharer.tokenizer for sender in self.senders]

        def heard(prompts: Sequence[str]) -> list[Exchange]:
            return exchanges(
                prompts, self.receiver.tokenizer, tokenizers, alignment=self.alignment, **self.answering.rendering
            )

        found = heard([a.item.prompt for a in batch])
        if self.sharer_cache == "shuffled":
            found = list(map(overheard, found, heard([a.other.prompt for a in batch])))
        for one in found:
            for sender, read in zip(self.senders, one.sharers, strict=True):
                refuse_too_long(sender.sharer.model, len(read.ids))
        return found

    def _fused(
        self, prompts: Sequence[Sequence[int]], own: Read | None, given: Sequence[Contribution], clock: Clock
    ) -> Prefilled:
        """The receiver's cache of the prompts but for their last tokens, fused."""
        if own is None or self.legacy_fusion:
            with clock("receiver_s"), torch.no_grad():
                return as_it_goes(self.receiver.model, [ids[:-1] for ids in prompts], given, combine=self.combine)
        with clock("fuse_s"), torch.no_grad():
            return together(own.cache, given, combine=self.combine)

    def _send(
        self, n: int, items: Sequence[Item], exchanges: Sequence[Exchange], own: Read | None, clock: Clock
    ) -> Sent:
        """What the n-th sender gives to the batch."""
        sender, heard = self.senders[n], [e.sharers[n] for e in exchanges]
        streams = sender.fuser.streams()
        with clock("sharer_s"):
            read = self.selecting.sharer_reads(sender.sharer, [h.ids for h in heard], sender.fuser)
        whole = Contribution(sender.fuser, dict(enumerate(read.cache.kv)), source_index(heard, read.cache.mask))
        with clock("encode_s"):
            heard = self.selecting.kept(items, heard, own, read, whole)
            requests = self._requests(heard)
            places = [h.wanted for h in heard] if requests is None else list(map(decode_request, requests))
            cache = _zeroed(read.cache) if self.sharer_cache == "zeroed" else read.cache
            blobs = encode_many(messages_of(cache, streams, places), self.wire.codec, self.wire.bits)
        like, width = cache.kv[0][0], cache.mask.shape[1]
        with clock("decode_s"):
            got = received(decode_many(blobs, device=str(like.device), dtype=like.dtype), width, like)
        geometry = sender.sharer.geometry
        return Sent(
            Contribution(sender.fuser, got, source_index(heard, cache.mask)),
            message_bytes=[len(blob) for blob in blobs],
            formula_bytes=[
                self.wire.size(geometry, streams, len(h.ids), p) for h, p in zip(heard, places, strict=True)
            ],
            request_bytes=[0] * len(heard) if requests is None else list(map(len, requests)),
            sent_tokens=[len(p) for p in places],
        )

    def _requests(self, heard: Sequence[Heard]) -> list[bytes] | None:
        """What the receiver asks for, item by item, where the sharer sends what it is asked for."""
        if not self.selecting.by("two_round"):
            return None
        return [encode_request(h.wanted, len(h.ids)) for h in heard]


def _zeroed(cache: Prefilled) -> Prefilled:
    return replace(cache, kv=[(torch.zeros_like(key), torch.zeros_like(value)) for key, value in cache.kv])


def _counts(exchange: Exchange, sent: Sequence[Sent], item: int) -> dict[str, int | None]:
    """Integer columns of one item, over all senders."""
    formulas = [s.formula_bytes[item] for s in sent]
    known = [size for size in formulas if size is not None]
    return {
        "input_tokens": len(exchange.receiver_ids),
        "sharer_tokens": sum(len(heard.ids) for heard in exchange.sharers),
        "sent_tokens": sum(s.sent_tokens[item] for s in sent),
        "message_bytes": sum(s.message_bytes[item] for s in sent),
        "formula_bytes": sum(known) if len(known) == len(formulas) else None,
        "request_bytes": sum(s.request_bytes[item] for s in sent),
    }
