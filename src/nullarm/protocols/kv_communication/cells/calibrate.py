"""Stage `calibrate`: what each codec does to each stream, and to the answers, on items that are not tested."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pyarrow as pa
import torch
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
from nullarm.protocols.kv_communication.communication.exchange import exchange
from nullarm.protocols.kv_communication.communication.fuse import Contribution, source_index, together
from nullarm.protocols.kv_communication.communication.prefill import Prefilled, prefill
from nullarm.protocols.kv_communication.fuser import Fuser
from nullarm.protocols.kv_communication.geometry import HALVES, Stream
from nullarm.protocols.kv_communication.planning import answered_task
from nullarm.protocols.kv_communication.tables import SENSITIVITY, STATISTICS
from nullarm.protocols.kv_communication.wire.codec import codec_of


def run(context: CellContext) -> CellResult:
    """Measure, codec by codec.

    Raises:
        Preempted: Asked to stop between two codecs.
        InvalidResult: An answer is not a distribution.
    """
    asked, name = context.cell.parameters, str(context.cell.slice)
    receiver, fuser = receiver_of(context), fuser_of(context, name)
    sharer = sharer_of(context, context.cell.settings["fusers"][name]["sharer"])
    check_fit([fuser], [sharer], receiver)
    streams, mask, answer = _measured(context, receiver, sharer, fuser)
    codecs = {codec: codec_of(data) for codec, data in asked["codecs"].items()}
    _write(context, STATISTICS, codecs, lambda c: statistics(c, codecs[c], streams, mask))
    widths = asked["widths"]
    _write(context, SENSITIVITY, widths, lambda c: sensitivities(c, codecs[c], widths[c], streams, mask, answer))
    return CellResult({"items": len(mask), "streams": len(streams), "tokens": int(mask.sum())})


def _write(
    context: CellContext, name: str, codecs: Iterable[str], rows: Callable[[str], Iterable[dict[str, Any]]]
) -> None:
    """One chunk for each codec, and all of them as the artefact."""
    tables = []
    for codec in codecs:
        if context.should_stop():
            raise Preempted(f"asked to stop before the {name} of {codec}")

        def make(codec: str = codec) -> pa.Table:
            return pa.Table.from_pylist(list(rows(codec)))

        tables.append(context.writer.table_chunk(f"{name}-{codec}", make))
    if tables:
        context.writer.table_artefact(name, pa.concat_tables(tables))


def _measured(
    context: CellContext, receiver: Participant, sharer: Participant, fuser: Fuser
) -> tuple[dict[Stream, Tensor], Tensor, Answer]:
    """The streams of the calibration items [items, heads, tokens, head_dim], their mask, and what answers follow."""
    asked = context.cell.parameters
    words = {"chat_template": asked["chat_template"], "answer_prefix": asked["answer_prefix"]}
    items = answered_task(context.cell.settings["task"]).items("dev")[: asked["calibration_items"]]
    exchanges = [exchange(item.prompt, receiver.tokenizer, [sharer.tokenizer], **words) for item in items]
    size = int(context.cell.settings["evaluation_batch_size"])
    own = prefill(receiver.model, [e.receiver_ids[:-1] for e in exchanges])
    sent = prefill(sharer.model, [e.sharers[0].ids for e in exchanges])
    source = source_index([e.sharers[0] for e in exchanges], sent.mask)
    last = torch.tensor([[e.receiver_ids[-1]] for e in exchanges], device=own.mask.device)

    def of_some(streams: Mapping[Stream, Tensor], rows: slice) -> Tensor:
        part = {stream: numbers[rows] for stream, numbers in streams.items()}
        kv = {n: (part.get(Stream(n, "key")), part.get(Stream(n, "value"))) for n in {stream.layer for stream in part}}
        cache = Prefilled([(k[rows], v[rows]) for k, v in own.kv], own.mask[rows], own.positions[rows])
        fused = together(cache, [Contribution(fuser, kv, source[rows])])
        return continue_logits(receiver.model, fused, last[rows], torch.ones_like(last[rows], dtype=torch.bool))

    def answer(streams: Mapping[Stream, Tensor]) -> Tensor:
        with torch.no_grad():
            return torch.cat([of_some(streams, slice(n, n + size)) for n in range(0, len(items), size)]).log_softmax(-1)

    return {s: sent.kv[s.layer][HALVES.index(s.half)] for s in fuser.streams()}, sent.mask, answer
