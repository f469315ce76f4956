"""Stage `calibrate`: what a codec does to each stream, and to the answers, on items that are not tested."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor

from nullarm.errors import Preempted
from nullarm.protocols.base import CellContext, CellResult
from nullarm.protocols.kv_communication.allocation.sensitivity import Answer, sensitivities, statistics
from nullarm.protocols.kv_communication.channels.participants import (
    Participant,
    check_fit,
    fuser_of,
    receiver_of,
    sharer_of,
)
from nullarm.protocols.kv_communication.communication.answer import continue_logits
from nullarm.protocols.kv_communication.communication.exchange import exchanges
from nullarm.protocols.kv_communication.communication.fuse import Contribution, source_index, together
from nullarm.protocols.kv_communication.communication.prefill import Prefilled, prefill, refuse_too_long
from nullarm.protocols.kv_communication.fuser import Fuser
from nullarm.protocols.kv_communication.geometry import Stream, by_layer, of
from nullarm.protocols.kv_communication.planning import answered_task
from nullarm.protocols.kv_communication.tables import SENSITIVITY, STATISTICS
from nullarm.protocols.kv_communication.wire.codec import codec_of

Row = dict[str, Any]


def run(context: CellContext) -> CellResult:
    """Measure one codec on what one fuser reads.

    Raises:
        Preempted: Asked to stop between two streams.
        DatasetError: A prompt is longer than a model's context.
        InvalidResult: An answer is not a distribution.
    """
    asked = context.cell.parameters
    name, codec_name, codec, widths = asked["fuser"], asked["codec_name"], codec_of(asked["codec"]), asked["widths"]
    receiver, fuser = receiver_of(context), fuser_of(context, name)
    sharer = sharer_of(context, context.cell.settings["fusers"][name]["sharer"])
    check_fit([fuser], [sharer], receiver)
    streams, mask, answer = _measured(context, receiver, sharer, fuser)
    _write(context, STATISTICS, statistics(codec_name, codec, streams, mask))
    if widths:
        _write(context, SENSITIVITY, sensitivities(codec_name, codec, widths, streams, mask, answer))
    return CellResult({"items": len(mask), "streams": len(streams), "tokens": int(mask.sum())})


def _write(context: CellContext, name: str, rows: Iterable[Row]) -> None:
    """A table, which is not made again where an earlier attempt got that far."""
    table = context.writer.table_chunk(name, lambda: pa.Table.from_pylist(list(_stoppable(context, name, rows))))
    context.writer.table_artefact(name, table)


def _stoppable(context: CellContext, name: str, rows: Iterable[Row]) -> Iterator[Row]:
    for row in rows:
        if context.should_stop():
            raise Preempted(f"asked to stop before the {name} were all there")
        yield row


def _measured(
    context: CellContext, receiver: Participant, sharer: Participant, fuser: Fuser
) -> tuple[dict[Stream, Tensor], Tensor, Answer]:
    """The streams of the calibration items [items, heads, tokens, head_dim], their mask, and what answers follow."""
    asked = context.cell.parameters
    words = {"chat_template": asked["chat_template"], "answer_prefix": asked["answer_prefix"]}
    items = answered_task(context.cell.settings["task"]).items("dev")[: asked["calibration_items"]]
    heard = exchanges([item.prompt for item in items], receiver.tokenizer, [sharer.tokenizer], **words)
    for one in heard:
        refuse_too_long(receiver.model, len(one.receiver_ids))
        refuse_too_long(sharer.model, len(one.sharers[0].ids))
    size = int(context.cell.settings["evaluation_batch_size"])
    own = prefilled(receiver.model, [e.receiver_ids[:-1] for e in heard], size)
    sent = prefilled(sharer.model, [e.sharers[0].ids for e in heard], size)
    source = source_index([e.sharers[0] for e in heard], sent.mask)
    last = torch.tensor([[e.receiver_ids[-1]] for e in heard], device=own.mask.device)

    def of_some(streams: Mapping[Stream, Tensor], rows: slice) -> Tensor:
        kv = by_layer({stream: numbers[rows] for stream, numbers in streams.items()})
        cache = Prefilled([(k[rows], v[rows]) for k, v in own.kv], own.mask[rows], own.positions[rows])
        fused = together(cache, [Contribution(fuser, kv, source[rows])])
        return continue_logits(receiver.model, fused, last[rows], torch.ones_like(last[rows], dtype=torch.bool))

    def answer(streams: Mapping[Stream, Tensor]) -> Tensor:
        with torch.no_grad():
            return torch.cat([of_some(streams, slice(n, n + size)) for n in range(0, len(items), size)]).log_softmax(-1)

    return {stream: of(sent.kv, stream) for stream in fuser.streams()}, sent.mask, answer


def prefilled(model: Any, ids: Sequence[Sequence[int]], batch_size: int) -> Prefilled:
    """`prefill` of all rows, so many at a time.

    Args:
        model: Causal LM in evaluation mode.
        ids: Token ids of each row.
        batch_size: Most rows of a forward pass.
    """
    pieces = [prefill(model, ids[n : n + batch_size]) for n in range(0, len(ids), batch_size)]
    widths = [piece.mask.shape[1] for piece in pieces]

    def joined(parts: Sequence[Tensor], *after: int) -> Tensor:
        return torch.cat([F.pad(part, (*after, max(widths) - n, 0)) for part, n in zip(parts, widths, strict=True)])

    layers = zip(*(piece.kv for piece in pieces), strict=True)
    kv = [(joined([k for k, _ in layer], 0, 0), joined([v for _, v in layer], 0, 0)) for layer in layers]
    return Prefilled(kv, joined([p.mask for p in pieces]), joined([p.positions for p in pieces]))
