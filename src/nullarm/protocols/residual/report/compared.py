"""What was compared: models, prompts, runs, what was refused, and whether the instrument reads zero where it must."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from nullarm.protocols.findings import unfinished
from nullarm.protocols.residual.planning import CAPTURE
from nullarm.protocols.residual.report.entries import Entry, Group, alone, members
from nullarm.report import Block, Note, Table, Text, Value
from nullarm.store.study_store import StudyStore


def compared(store: StudyStore, entries: Sequence[Entry], shown: Sequence[Group]) -> Iterator[Block]:
    """Blocks of the section; `shown` are the groups that the rest of the page draws."""
    yield from _warnings(store, entries, shown)
    if not entries:
        return
    yield Text(_scope(entries, shown))
    yield from _models(entries)
    yield _instrument(entries)
    yield from _runs(entries[0])
    yield from _remarks(entries)


def _warnings(store: StudyStore, entries: Sequence[Entry], shown: Sequence[Group]) -> Iterator[Note]:
    for cell, why in unfinished(store, CAPTURE, {entry.cell.id for entry in entries}):
        yield Note(f"{cell.label} has no finished capture: {why}", "warning")
    for entry in entries:
        if not entry.usable:
            reason = entry.finished.record.reason or entry.finished.record.outcome
            yield Note(f"{entry.cell.label} is not drawn: {reason}", "warning")
    for arm in alone(store.lock.study, shown):
        yield Note(f"{arm} is shown without its control, which has no usable capture.", "warning")


def _scope(entries: Sequence[Entry], shown: Sequence[Group]) -> str:
    drawn = members(shown)
    left_out = list(dict.fromkeys(e.arm for e in entries if e.usable and e.arm not in {d.arm for d in drawn}))
    sentences = ["Every difference is fine-tuned − base. Layer −1 is the embedding output, layer k that of block k."]
    if len(entries) > len(drawn):
        sentences.append("The charts show the first capture of each arm (first seed, first replicate).")
    if left_out:
        sentences.append(f"Not drawn, to keep the page readable, but in every table: {', '.join(left_out)}.")
    sentences.append(
        "All numbers, by prompt, variant, layer and position, are in the Parquet files beside each cell's record."
    )
    return " ".join(sentences)


def _models(entries: Sequence[Entry]) -> Iterator[Table]:
    """One row per arm: its captures read the same models and prompts."""
    first = {entry.arm: entry for entry in reversed(entries)}
    arms = [first[arm] for arm in dict.fromkeys(entry.arm for entry in entries)]
    cells = tuple(entry.cells for entry in arms)
    yield Table("Pairs of models", ("entry", "base", "fine-tuned", "weights", "dtype"), tuple(map(_pair, arms)), cells)
    columns = ("entry", "blocks", "width", "lens", "prompts", "variants", "tokens shared", "left out of base",
               "left out of fine-tuned")  # fmt: skip
    yield Table("What was read", columns, tuple(map(_read, arms)), cells)


def _pair(entry: Entry) -> tuple[Value, ...]:
    about, weights = entry.captured.about, entry.cell.parameters.get("sft_weights", "trained")
    return (entry.name, about["base"], about["sft"], weights.replace("_", " "), about["dtype"])


def _read(entry: Entry) -> tuple[Value, ...]:
    about, counts = entry.captured.about, entry.captured.prompt_counts
    left_out = about["tokens_left_out"]
    return (
        entry.name, about["layers"], about["d_model"], about["lens"], max(counts.values(), default=0), len(counts),
        about["tokens_shared"], left_out["base"], left_out["sft"],
    )  # fmt: skip


def _instrument(entries: Sequence[Entry]) -> Table:
    """The base model against itself."""
    names = list(dict.fromkeys(name for entry in entries for name in entry.captured.about["null"]))
    return Table(
        title="Instrument check: the base model against itself",
        columns=("entry", "seed", "replicate", *(f"largest {name}" for name in names), "limit", "outcome"),
        rows=tuple(
            (
                *entry.row_head,
                *(entry.captured.about["null"].get(name) for name in names),
                entry.cell.parameters.get("null_epsilon"),
                entry.finished.record.outcome,
            )
            for entry in entries
        ),
        cells=tuple(entry.cells for entry in entries),
        caption="Each capture runs the base model twice on its first batch. A capture that is above the limit is "
        "invalid and enters no verdict.",
    )


def _runs(entry: Entry) -> Iterator[Table]:
    """Which parts each run is made of, where that needs saying."""
    passes = entry.captured.passes
    if len(passes.runs) == 2 and all(run.body == run.embedding == run.unembedding for run in passes.runs):
        return
    yield Table(
        title="Runs",
        columns=("run", "embedding of", "blocks of", "unembedding of"),
        rows=tuple((run.name, run.embedding, run.body, run.unembedding) for run in passes.runs),
        caption="Comparisons, the first run as the base: " + ", ".join(c.name for c in passes.comparisons) + ". "
        f"Hotspots, maps and trajectories are those of {passes.primary.name}.",
    )


def _remarks(entries: Sequence[Entry]) -> Iterator[Table]:
    rows = [(entry, metric, reason) for entry in entries for metric, reason in entry.captured.about["refused"].items()]
    rows += [(entry, "note", note) for entry in entries for note in entry.captured.about["notes"]]
    if rows:
        yield Table(
            title="Refused metrics and notes",
            columns=("entry", "metric", "reason"),
            rows=tuple((entry.name, what, why) for entry, what, why in rows),
            cells=tuple(entry.cells for entry, _, _ in rows),
        )
