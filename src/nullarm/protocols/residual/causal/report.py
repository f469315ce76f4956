"""What the report says about the interventions: one section per kind, one set of charts per arm.

Where an arm has several seeds or replicates, its first is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain

import pandas as pd
import pyarrow as pa

from nullarm.protocols.residual.causal.summary import over_prompts, with_place
from nullarm.protocols.residual.causal.tables import (
    DIRECTIONS,
    LAYER_SWAP,
    MEAN_DIFFERENCE,
    PATCHING,
    RANDOM,
    SETTING,
    SPANS,
    STEERING,
)
from nullarm.protocols.residual.report.entries import Entry, captures
from nullarm.protocols.residual.report.layers import LAYER
from nullarm.protocols.residual.report.maps import prompt_label, token_label
from nullarm.report import (
    Axis,
    Block,
    Guide,
    Heatmap,
    HeatmapPanel,
    Note,
    Plot,
    PlotPanel,
    Section,
    Series,
    Table,
    Text,
    Value,
)
from nullarm.report.numbers import finite, show
from nullarm.store.record import FinishedCell
from nullarm.store.study_store import StudyStore
from nullarm.study.plan import Cell

PROMPTS_SHOWN = 2
"""Prompts whose layer × position maps are drawn."""

SAME = 1e-6
"""KL(donor ‖ recipient), nats, up to which the two are one model."""
DECIMALS = 4
"""Of the values in a map: smaller ones are rounding noise of the models' logits."""
ROUNDED = f"Values are rounded to {DECIMALS} decimals; the table of the cell has all of them."

WAYS = {name: f"{donor} into {recipient}" for name, (donor, recipient) in DIRECTIONS.items()}
COLUMNS_SWAPPED = (
    ("effect", "effect", ""),
    ("kl_donor", "KL(donor ‖ hybrid)", ", nats"),
    ("loss", "loss of the prompts", ", nats a token"),
)
OVER_PROMPTS = "Mean over prompts with a 95 % t interval; an effect is null where the models' outcomes hardly differ."

Done = tuple[Cell, FinishedCell]


def causal_sections(store: StudyStore) -> list[Section]:
    """The sections of the interventions that have run."""
    kinds: tuple[tuple[str, str, Callable[[Cell, FinishedCell], Iterator[Block]]], ...] = (
        (PATCHING, "Activation patching", partial(_patching, captures(store))),
        (LAYER_SWAP, "Layer-range swaps", _layer_swap),
        (STEERING, "Steering by the mean difference", _steering),
    )
    found = [(title, draw, _shown(store, stage)) for stage, title, draw in kinds]
    return [
        Section(title, tuple(chain.from_iterable(_blocks(cell, done, draw) for cell, done in shown)))
        for title, draw, shown in found
        if shown
    ]


def _blocks(cell: Cell, done: FinishedCell, draw: Callable[[Cell, FinishedCell], Iterator[Block]]) -> Iterator[Block]:
    """What is measured, and the charts where there is anything to see."""
    yield from _outcome(cell, done)
    if done.record.metrics["prompts_with_effect"] or (cell.stage != PATCHING and _apart(done.table(cell.stage))):
        yield from draw(cell, done)


def _apart(table: pa.Table) -> bool:
    """Whether the models differ although no effect is defined: divergences and losses can still be drawn."""
    return any((kl or 0.0) > SAME for kl in table["kl_before"].to_pylist())


def _shown(store: StudyStore, stage: str) -> list[Done]:
    """The first finished cell of each arm."""
    first: dict[str, Done] = {}
    for cell in store.plan:
        if cell.stage == stage and (done := store.finished(cell.id)) and done.record.outcome == "ok":
            first.setdefault(str(cell.arm), (cell, done))
    return list(first.values())


def _outcome(cell: Cell, done: FinishedCell) -> Iterator[Block]:
    """What is measured, and for how many prompts an effect is defined."""
    setting, metrics = done.json(SETTING), done.record.metrics
    target, foil = (repr(setting[name]["token"]) for name in ("target", "foil"))
    yield Text(
        f"{cell.arm}: the outcome is logit({target}) − logit({foil}) at the last position, through the model's own "
        "head. The effect is (outcome − recipient) / (donor − recipient): 0 leaves the recipient as it was, 1 makes it "
        "the donor."
    )
    prompts, defined = metrics["prompts"], metrics["prompts_with_effect"]
    gap = show(setting["least_gap"])
    if not defined:
        yield Note(
            f"{cell.arm}: on none of {prompts} prompts do the two models' outcomes differ by {gap} or more, so "
            f"there is no effect to draw. All numbers are in the table `{cell.stage}`."
        )
    elif defined != prompts:
        yield Note(f"{cell.arm}: effects are of {defined} of {prompts} prompts; on the others the gap is below {gap}.")
    for note in setting["notes"]:
        yield Note(f"{cell.arm}: {note}", "warning")


def _patching(entries: Sequence[Entry], cell: Cell, done: FinishedCell) -> Iterator[Block]:
    frame = with_place(done.table(PATCHING))
    last = frame["from_end"] == 0
    panels = (("last position", frame[last]), ("earlier positions, averaged", frame[~last]))
    yield Plot(
        title=f"Effect of one residual by layer, {cell.arm}",
        x=LAYER,
        y=Axis("effect"),
        panels=tuple(PlotPanel(title, _ways(part, ["layer"], "effect", cell)) for title, part in panels),
        guides=(Guide("y", 0.0), Guide("y", 1.0)),
        caption=f"{OVER_PROMPTS} Dashed: the recipient as it is, 0, and the donor, 1. Layer −1 is the embedding "
        "output. At the last layer and position the effect only says how alike the two final norms and heads are.",
    )
    texts = _texts(entries, cell)
    for prompt in list(dict.fromkeys(frame["prompt"]))[:PROMPTS_SHOWN]:
        own = frame[frame["prompt"] == prompt]
        tokens = [texts.get(token, token) for token in done.json(SETTING)["tokens"][str(prompt)]]
        yield Heatmap(
            title=f"Effect of one residual, {cell.arm}, prompt {prompt}", x_label="position", y_label="layer",
            value_label="effect", scale="diverging",
            panels=tuple(_map(way, own[own["direction"] == name], tokens, cell) for name, way in WAYS.items()),
            caption=f"{prompt_label(prompt, tokens)} {ROUNDED}",
        )  # fmt: skip


def _texts(entries: Sequence[Entry], cell: Cell) -> Mapping[str, str]:
    """Decoded text by vocabulary string, as a capture of the same models knows it; nothing without one."""
    return next((entry.captured.texts for entry in entries if entry.arm == cell.arm and entry.usable), {})


def _map(title: str, frame: pd.DataFrame, tokens: list[str], cell: Cell) -> HeatmapPanel:
    effects = frame.pivot(index="layer", columns="position", values="effect")[::-1]
    outcomes = frame.pivot(index="layer", columns="position", values="outcome")[::-1]
    return HeatmapPanel(
        title=title,
        x=tuple(f"{position} {token_label(token).strip()}" for position, token in enumerate(tokens)),
        y=tuple(show(layer) for layer in effects.index),
        values=[[finite(value) for value in row] for row in effects.to_numpy(float).round(DECIMALS)],
        hover=[[f"outcome {show(float(value))}" for value in row] for row in outcomes.to_numpy()],
        cells=(cell.id,),
    )


def _layer_swap(cell: Cell, done: FinishedCell) -> Iterator[Block]:
    frame = done.table(LAYER_SWAP).to_pandas()
    ends = {"window": "first", "prefix": "last", "suffix": "first"}
    size = cell.parameters["window"]
    titles = (
        f"window of {size} blocks, by its first" if size > 1 else "window of 1 block",
        "up to this block",
        "from this block on",
    )
    for column, what, unit in COLUMNS_SWAPPED:
        if frame[column].isna().all():
            continue
        panels = (
            PlotPanel(title, _ways(frame[frame["span"] == span], [ends[span]], column, cell))
            for span, title in zip(SPANS, titles, strict=True)
        )
        yield Plot(
            title=f"Exchanged blocks: {what}, {cell.arm}", x=Axis("block", whole=True), y=Axis(f"{what}{unit}"),
            panels=tuple(panels), caption=OVER_PROMPTS,
        )  # fmt: skip
    yield _body(frame, cell)


def _body(frame: pd.DataFrame, cell: Cell) -> Table:
    """What all blocks together carry; the rest is embedding, final norm and head."""
    whole = frame[(frame["span"] == "prefix") & (frame["last"] == frame["last"].max())]
    names = ("outcome", "recipient", "donor", "effect", "kl_donor", "kl_before", "loss", "loss_recipient", "loss_donor")
    rows = tuple(
        (way, *(_mean(whole[whole["direction"] == direction][name]) for name in names))
        for direction, way in WAYS.items()
    )
    return Table(
        title=f"The whole body exchanged, {cell.arm}", columns=("blocks", *names), rows=rows,
        cells=tuple((cell.id,) for _ in rows),
        caption="Means over prompts. What the effect lacks to 1 is embedding, final norm and head.",
    )  # fmt: skip


def _steering(cell: Cell, done: FinishedCell) -> Iterator[Block]:
    frame = done.table(STEERING).to_pandas()
    strengths = sorted(frame["strength"].unique())
    before = float(frame.groupby("prompt")["kl_before"].first().mean())
    yield Plot(
        title=f"KL from the fine-tuned model to the steered base, {cell.arm}",
        x=LAYER,
        y=Axis("KL(fine-tuned ‖ steered), nats"),
        panels=tuple(
            PlotPanel(f"strength {show(float(strength))}", _directions(frame[frame["strength"] == strength], cell))
            for strength in strengths
        ),
        guides=(Guide("y", before),),
        caption=f"Mean over prompts with a 95 % t interval. {RANDOM}: a direction of the same length, the control. "
        "Dashed: the base model, not steered.",
    )
    moved = frame.assign(shift=frame["outcome"] - frame["recipient"])
    yield Heatmap(
        title=f"Shift of the outcome by steering, {cell.arm}", x_label="strength", y_label="layer",
        value_label="outcome − base, logits", scale="diverging",
        panels=tuple(_shifts(name, moved[moved["direction"] == name], cell) for name in (MEAN_DIFFERENCE, RANDOM)),
        caption=f"Mean over prompts. {ROUNDED}",
    )  # fmt: skip


def _shifts(title: str, frame: pd.DataFrame, cell: Cell) -> HeatmapPanel:
    means = frame.pivot_table(index="layer", columns="strength", values="shift", aggfunc="mean")[::-1]
    return HeatmapPanel(
        title=title,
        x=tuple(show(float(strength)) for strength in means.columns),
        y=tuple(show(layer) for layer in means.index),
        values=means.to_numpy(float).round(DECIMALS).tolist(),
        cells=(cell.id,),
    )


def _ways(frame: pd.DataFrame, by: list[str], column: str, cell: Cell) -> tuple[Series, ...]:
    return tuple(_series(way, frame[frame["direction"] == name], by, column, cell) for name, way in WAYS.items())


def _directions(frame: pd.DataFrame, cell: Cell) -> tuple[Series, ...]:
    return tuple(
        _series(name, frame[frame["direction"] == name], ["layer"], "kl_donor", cell)
        for name in (MEAN_DIFFERENCE, RANDOM)
    )


def _series(name: str, frame: pd.DataFrame, by: list[str], column: str, cell: Cell) -> Series:
    means = over_prompts(frame, by, column)
    ends = [(float(low), float(high)) for low, high in zip(means["low"], means["high"], strict=True)]
    return Series(
        name=name,
        x=[int(place) for place in means.index],
        y=[float(mean) for mean in means["mean"]],
        y_interval=[None if n < 2 else pair for pair, n in zip(ends, means["prompts"], strict=True)],
        cells=((cell.id,),),
        style="line+points",
    )


def _mean(values: pd.Series[float]) -> Value:
    return finite(float(values.mean()))
