"""What every arm is, what it costs in bytes and likelihood, and what it gains in speed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from nullarm.protocols.findings import unfinished
from nullarm.protocols.low_rank.parameters import LowRankParameters
from nullarm.protocols.low_rank.report.words import arm_words
from nullarm.protocols.low_rank.results import ArmResult
from nullarm.report import Block, Note, Table, Value
from nullarm.report.numbers import show_percent
from nullarm.store.study_store import StudyStore

HASH_DIGITS = 12
NOT_BEGUN = ("open", "pending.")
"""What `unfinished` says of such cells."""


def arms(store: StudyStore, results: Sequence[ArmResult]) -> Iterator[Block]:
    """Three tables of all arms; cells that did not end well are named first."""
    if missing := list(_missing(store)):
        yield Table("Without a result", ("cell", "how far it got"), tuple(missing))
    if not results:
        return
    if store.lock.study.smoke:
        yield Note("A smoke run: the numbers show that everything runs, and none of them enters a verdict.", "warning")
    level = show_percent(1 - 2 * store.lock.study.analysis.alpha)
    yield _what_they_are(store, results)
    yield _what_they_cost(results, level)
    if timed := [result for result in results if result.speed is not None]:
        yield _how_fast(timed, level)


def _missing(store: StudyStore) -> Iterator[tuple[str, str]]:
    """Cells without a result, and why; of those that nobody has begun, only how many there are."""
    finished = {cell.id: done for cell in store.plan if (done := store.finished(cell.id))}
    stages = dict.fromkeys(cell.stage for cell in store.plan)
    open_cells = [(cell, why) for stage in stages for cell, why in unfinished(store, stage, finished)]
    for cell, why in open_cells:
        if why not in NOT_BEGUN:
            yield cell.label, why
    for cell in store.plan:
        if (done := finished.get(cell.id)) and done.record.outcome != "ok":
            yield cell.label, f"{done.record.outcome}. {done.record.reason or ''}".strip()
    if waiting := sum(why in NOT_BEGUN for _, why in open_cells):
        yield f"{waiting} more of {len(store.plan)} cells", "not begun"


def _what_they_are(store: StudyStore, results: Sequence[ArmResult]) -> Table:
    study = store.lock.study
    compression = LowRankParameters.model_validate(study.parameters).compression
    first: dict[str, str] = {}
    for result in results:
        first.setdefault(result.weights, result.name)
    rows = []
    for result in results:
        arm, null = compression[result.arm], study.arms[result.arm].null
        twin = first[result.weights]
        remarks = [f"null: {null}" if null else "", f"same weights as {twin}" if twin != result.name else ""]
        rows.append(
            (result.name, arm_words(arm), " ".join(arm.slots) or None, result.weights[:HASH_DIGITS],
             "; ".join(filter(None, remarks)) or None)
        )  # fmt: skip
    return Table(
        title="What each arm is",
        columns=("arm", "method", "slots", "treatment", "remarks"),
        rows=tuple(rows),
        cells=tuple(result.cells for result in results),
        caption=f"Treatment: the first {HASH_DIGITS} digits of the SHA-256 of the weights that were really run.",
    )


def _what_they_cost(results: Sequence[ArmResult], level: str) -> Table:
    return Table(
        title="What each arm costs",
        columns=("arm", "bytes in slots", "share", "all bytes", "PPL", "low", "high", "ΔNLL", "ΔNLL low", "ΔNLL high"),
        rows=tuple(map(_cost, results)),
        cells=tuple(result.cells for result in results),
        caption="Bytes in slots: of the matrices in all seven slots of every layer, shared bases and scales "
        "counted; an arm that speculates has its drafter's factors as well. Share: of the baseline's. PPL per token, "
        "over the whole evaluation text; ΔNLL against the baseline, nats a token, "
        f"paired; here each token counts alike, in a verdict each document. {level} bootstrap intervals over "
        "documents, which say nothing of the seed.",
    )


def _cost(r: ArmResult) -> tuple[Value, ...]:
    ppl = (r.perplexity_interval.low, r.perplexity_interval.high) if r.perplexity_interval else (None, None)
    rise = (r.rise_interval.low, r.rise_interval.high) if r.rise_interval else (None, None)
    return (r.name, r.slot_bytes, r.kept, r.bytes, r.token_perplexity, *ppl, r.rise, *rise)


def _how_fast(results: Sequence[ArmResult], level: str) -> Table:
    return Table(
        title="What each arm gains in speed",
        columns=("arm", "timed against", "tok/s ratio", "low", "high", "session", "peak GPU bytes"),
        rows=tuple(map(_speed, results)),
        cells=tuple((result.cell, *([result.speed.cell.id] if result.speed else [])) for result in results),
        caption=f"Tokens a second over those of the arm it was timed against, {level} intervals. No ratio: the "
        "session may not be believed, see the timing sessions.",
    )


def _speed(r: ArmResult) -> tuple[Value, ...]:
    assert r.speed is not None
    ends = r.speed.ratio_interval
    low, high = (ends.low, ends.high) if ends else (None, None)
    state = r.speed.judgement.session.value
    return (r.name, r.speed.contrast.control, r.speed.ratio, low, high, state, r.peak_memory_bytes)
