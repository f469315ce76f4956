"""What was compared: models, and every arm with what it sends and how often it is right."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from nullarm.protocols.findings import unfinished
from nullarm.protocols.kv_communication.budget.arms import ArmResult, arm_results, scopes
from nullarm.protocols.kv_communication.budget.evaluations import Evaluation, usable
from nullarm.protocols.kv_communication.tables import EVALUATE
from nullarm.report import Block, KeyValues, Note, Table, Value
from nullarm.store.study_store import StudyStore

ARM_COLUMNS = ("arm", "sends", "codec", "share", "order", "fusers", "remarks")
RESULT_COLUMNS = ("arm", "items", "accuracy", "low", "high", "bytes an item", "bytes an input token", "errors")


def overview(store: StudyStore, found: Sequence[Evaluation]) -> Iterator[Block]:
    """Blocks of the section; unusable evaluations are named, and in no table of results."""
    yield from _warnings(store, found)
    if not found:
        return
    yield _models(found)
    yield _arms(found)
    for dataset in scopes(usable(found)):
        yield _results(dataset, arm_results(usable(found), dataset))


def words(evaluation: Evaluation) -> str:
    """What an arm sends, in words."""
    c = evaluation.channel
    if evaluation.fused:
        return {"own": "cache", "zeroed": "zeros", "shuffled": "another item's cache"}[c["sharer_cache"]]
    if c["via"] == "text":
        return "text" + (f", at most {c['text_bytes']} bytes" if c["text_bytes"] else "")
    return {"receiver": "nothing", "sharer": "nothing: the sharer answers"}[c["via"]]


def _warnings(store: StudyStore, found: Sequence[Evaluation]) -> Iterator[Note]:
    for cell, why in unfinished(store, EVALUATE, {e.cell.id for e in found}):
        yield Note(f"{cell.label} has no finished evaluation: {why}", "warning")
    for e in found:
        if not e.usable:
            reason = e.finished.record.reason or e.finished.record.outcome
            yield Note(f"{e.cell.label} is {e.finished.record.outcome} and enters no comparison: {reason}", "warning")


def _models(found: Sequence[Evaluation]) -> KeyValues:
    settings = found[0].cell.settings
    link = found[0].link
    return KeyValues(
        "Models and link",
        (
            ("receiver", settings["receiver"]),
            *((f"sharer {name}", ref) for name, ref in settings["sharers"].items()),
            ("bandwidth, Gbit/s", link.bandwidth_gbit_s),
            ("round trip, s", link.rtt_s),
        ),
    )


def _arms(found: Sequence[Evaluation]) -> Table:
    first = {e.arm: e for e in reversed(found)}
    arms = [first[arm] for arm in dict.fromkeys(e.arm for e in found)]
    return Table("Arms", ARM_COLUMNS, tuple(map(_arm, arms)), tuple((e.cell.id,) for e in arms))


def _arm(e: Evaluation) -> tuple[Value, ...]:
    if not e.fused:
        return (e.arm, words(e), None, None, None, None, None)
    c = e.channel
    order = c["order"] if c["proportion"] < 1 else None
    return (e.arm, words(e), c["codec"], c["proportion"], order, ", ".join(e.cell.settings["fusers"]), _remarks(e))


def _remarks(e: Evaluation) -> str | None:
    c = e.channel
    said = [
        f"bits by stream, {c['allocation']['mean_bits']:g} on average" if c["allocation"] else "",
        "one id per token (legacy)" if c["alignment"] == "one_id" else "",
        "fused as it goes (legacy)" if c["fusion"] == "as_it_goes" else "",
        c["combine"] if len(e.cell.settings["fusers"]) > 1 else "",
    ]
    return ", ".join(filter(None, said)) or None


def _results(dataset: str, results: Sequence[ArmResult]) -> Table:
    return Table(
        title=f"Accuracy and bytes: {dataset}",
        columns=RESULT_COLUMNS,
        rows=tuple(map(_result, results)),
        cells=tuple(r.cells for r in results),
        caption="An item that ended in an error counts as wrong. Intervals: 95 %, Wilson where items are independent "
        "and were asked once, else a bootstrap over seeds and clusters of items. Bytes are what crossed the wire.",
    )


def _result(r: ArmResult) -> tuple[Value, ...]:
    low, high = r.ends or (None, None)
    errors = sum(len(e.errors) for e in r.evaluations)
    return (r.arm, r.n, r.accuracy, low, high, r.wire_bytes, r.bytes_per_token, errors)
