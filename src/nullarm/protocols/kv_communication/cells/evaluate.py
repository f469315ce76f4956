"""Stage `evaluate`: an arm is asked every item of a data set, slice by slice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from nullarm.errors import DatasetError, InvalidResult, MessageError, Preempted
from nullarm.models.tasks.base import Item
from nullarm.protocols.base import CellContext, CellResult
from nullarm.protocols.kv_communication.allocation.allocate import allocate
from nullarm.protocols.kv_communication.channels.alone import Alone
from nullarm.protocols.kv_communication.channels.asked import Answered, Answerer, Answering, Asked
from nullarm.protocols.kv_communication.channels.by_cache import ByCache, Sender, Wire
from nullarm.protocols.kv_communication.channels.by_text import ByText
from nullarm.protocols.kv_communication.channels.participants import check_fit, fuser_of, receiver_of, sharer_of
from nullarm.protocols.kv_communication.channels.selecting import Selecting
from nullarm.protocols.kv_communication.parameters import Text
from nullarm.protocols.kv_communication.planning import answered_task
from nullarm.protocols.kv_communication.tables import ITEMS, LATENCY, SECONDS, SENSITIVITY
from nullarm.protocols.kv_communication.wire.codec import codec_of

ITEM_ERRORS = (DatasetError, InvalidResult, MessageError)
"""What is the fault of one item; everything else is the cell's."""
COUNTS = ("input_tokens", "sharer_tokens", "sent_tokens", "output_tokens", "message_bytes", "request_bytes")


def run(context: CellContext) -> CellResult:
    """Answer all items; those that end in an error are wrong, and the denominator stays what it is.

    Raises:
        Preempted: Asked to stop between two slices.
        ModelError: A model or fuser is not to be had, or they do not fit.
    """
    cell = context.cell
    asked, settings = cell.parameters, cell.settings
    answering = _answering(context)
    channel = _channel(context, answering)
    everything = _asked(answering.task.items("test")[: asked["limit"]], cell.seed, asked["channel"]["sharer_cache"])
    tables, size = [], int(settings["chunk_size"])
    for start in range(0, len(everything), size):
        if context.should_stop():
            raise Preempted(f"asked to stop after {start} of {len(everything)} items")
        part = everything[start : start + size]
        end = start + len(part)
        print(f"Eval {settings['dataset']}: [{start}, {end})", flush=True)

        def make(part: Sequence[Asked] = part) -> pa.Table:
            return _table(_answers(channel, part, int(settings["evaluation_batch_size"])), cell.slice, answering)

        tables.append(context.writer.table_chunk(f"items-{start:08d}-{end:08d}", make))
        context.progress(end, len(everything), "items")
    return _result(context, pa.concat_tables(tables))


def _result(context: CellContext, table: pa.Table) -> CellResult:
    context.writer.table_artefact(ITEMS, table.drop_columns(list(SECONDS)))
    context.writer.table_artefact(LATENCY, table.select(["item", *SECONDS]))
    errors = len(table) - table["error"].null_count
    metrics: dict[str, float | int | None] = {
        "accuracy": float(np.mean(table["accuracy"])),
        "items": len(table),
        "errors": errors,
        "message_bytes": float(np.mean(table["message_bytes"])),
    }
    share = context.cell.parameters["error_share"]
    if errors > share * len(table):
        rows = zip(table["item"].to_pylist(), table["error"].to_pylist(), strict=True)
        item, first = next((item, error) for item, error in rows if error)
        reason = f"{errors} of {len(table)} items ended in an error, the first, {item}: {first}"
        return CellResult(metrics, "invalid", reason)
    return CellResult(metrics)


def _answers(channel: Answerer, part: Sequence[Asked], batch_size: int) -> list[Answered]:
    """In the order of the items, asked in batches of neighbours in length."""
    order = sorted(range(len(part)), key=lambda i: len(part[i].item.prompt))
    found: dict[int, Answered] = {}
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        found |= zip(batch, _forgiving(channel, [part[i] for i in batch]), strict=True)
    return [found[i] for i in range(len(part))]


def _forgiving(channel: Answerer, batch: Sequence[Asked]) -> list[Answered]:
    """The batch's answers; where an item spoils it, each by itself, so that the culprit alone is wrong."""
    try:
        return channel.answer(batch)
    except ITEM_ERRORS as error:
        if len(batch) == 1:
            return [Answered(batch[0].item, False, "", error=f"{error.kind}: {error}")]
    return [answered for one in batch for answered in _forgiving(channel, [one])]


def _answering(context: CellContext) -> Answering:
    asked = context.cell.parameters
    return Answering(
        task=answered_task(context.cell.settings["task"]),
        by_likelihood=asked["answer_by"] == "likelihood",
        max_new_tokens=asked["max_new_tokens"],
        chat_template=asked["chat_template"],
        answer_prefix=asked["answer_prefix"],
    )


def _channel(context: CellContext, answering: Answering) -> Answerer:
    """The arm's channel, with everything loaded that it needs."""
    asked, name = context.cell.parameters, context.cell.settings["sharer"]
    said = asked["channel"]
    if said["via"] == "receiver":
        return Alone(receiver_of(context), answering)
    if said["via"] == "sharer":
        return Alone(sharer_of(context, name), answering)
    if said["via"] == "text":
        text = Text.model_validate(asked["text"])
        return ByText(receiver_of(context), sharer_of(context, name), text, said["text_bytes"], answering)
    receiver, senders = receiver_of(context), _senders(context)
    check_fit([s.fuser for s in senders], [s.sharer for s in senders], receiver)
    return ByCache(
        receiver,
        senders,
        _wire(context, said),
        Selecting(said["order"], said["proportion"], context.cell.seed),
        answering,
        sharer_cache=said["sharer_cache"],
        alignment=said["alignment"],
        combine=said["combine"],
        legacy_fusion=said["fusion"] == "as_it_goes",
    )


def _senders(context: CellContext) -> tuple[Sender, ...]:
    """One for each of the arm's fusers; a sharer that two of them read is loaded once."""
    fusers: Mapping[str, Any] = context.cell.settings["fusers"]
    sharers = {name: sharer_of(context, name) for name in {fuser["sharer"] for fuser in fusers.values()}}
    names = context.cell.parameters["channel"]["fusers"]
    return tuple(Sender(sharers[fusers[name]["sharer"]], fuser_of(context, name)) for name in names)


def _wire(context: CellContext, said: Mapping[str, Any]) -> Wire:
    codec = codec_of(said["codec"])
    if said["allocation"] is None:
        return Wire(codec)
    rows = context.needs["calibration"].table(SENSITIVITY).to_pylist()
    mine = [row for row in rows if row["codec"] == context.cell.settings["channel"]["codec"]]
    allocation = said["allocation"]
    return Wire(codec, allocate(mine, allocation["bits"], allocation["mean_bits"]))


def _asked(items: Sequence[Item], seed: int, sharer_cache: str) -> list[Asked]:
    """Every item, with another one of another cluster for the sharer to hear in the control `shuffled`.

    Raises:
        DatasetError: There is no other item.
    """
    if sharer_cache != "shuffled":
        return [Asked(item, item) for item in items]
    if len({_kept_together(item) for item in items}) < 2:
        raise DatasetError("the control `shuffled` needs items of two clusters", value=len(items))
    return [Asked(item, _other(item, items, np.random.default_rng([seed, n]))) for n, item in enumerate(items)]


def _other(item: Item, items: Sequence[Item], rng: np.random.Generator) -> Item:
    while True:
        other = items[int(rng.integers(len(items)))]
        if _kept_together(other) != _kept_together(item):
            return other


def _kept_together(item: Item) -> str:
    return item.id if item.cluster is None else item.cluster


def _table(answers: Sequence[Answered], dataset: str | None, answering: Answering) -> pa.Table:
    """Columns of `tables.ITEMS` and `tables.LATENCY`."""
    columns: dict[str, pa.Array] = {
        "item": pa.array([f"{dataset}:{a.item.id}" for a in answers], pa.string()),
        "cluster": pa.array(
            [None if (c := a.item.cluster) is None else f"{dataset}:{c}" for a in answers], pa.string()
        ),
        "dataset": pa.array([dataset for _ in answers], pa.string()),
        "accuracy": pa.array([float(a.correct) for a in answers], pa.float64()),
    }
    if answering.by_likelihood:
        columns["log_likelihood"] = pa.array([a.log_likelihood for a in answers], pa.float64())
    columns |= {
        "prediction": pa.array([a.prediction for a in answers], pa.string()),
        "target": pa.array([a.item.answer for a in answers], pa.string()),
        "error": pa.array([a.error for a in answers], pa.string()),
        "formula_bytes": pa.array([a.counts.get("formula_bytes") for a in answers], pa.int64()),
    }
    columns |= {name: pa.array([a.counts.get(name, 0) for a in answers], pa.int64()) for name in COUNTS}
    columns |= {name: pa.array([a.seconds.get(name, 0.0) for a in answers], pa.float64()) for name in SECONDS}
    return pa.table(columns)
