"""Trajectories: every metric layer by layer, with 95 % intervals over prompts; and the factorial of the parts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import fmean

from nullarm.protocols.residual.report.captured import Trajectory
from nullarm.protocols.residual.report.entries import Entry
from nullarm.report import Axis, Block, Plot, PlotPanel, Series, Table, Value

LAYER = Axis("layer", whole=True)
NATS = "nats"
BETWEEN = {
    "js": ("Jensen–Shannon divergence", NATS),
    "kl_div": ("KL(fine-tuned ‖ base)", NATS),
    "relative_diff": ("relative difference", "‖fine-tuned − base‖ / ‖base‖"),
    "direct_diff": ("changed by the layer itself", "norm of the direct change"),
    "cosine": ("cosine of the two residuals", "cosine"),
    "cka": ("linear CKA of the whole layer", "CKA"),
    "mean_difference": ("mean difference", "norm of the mean difference"),
    "direction_consistency": ("do prompts share its direction?", "mean cosine"),
}
"""Metrics of the primary comparison: title and unit."""
ALONG = {
    "entropy": ("Entropy of the lens distribution", NATS),
    "loss": ("Loss of the prompt's own next token through the lens", NATS),
    "effective_rank": ("Effective rank of the whole layer", "effective rank"),
}
"""Metrics of single runs."""
SHARES = {"embedding_share": "embedding", "body_share": "body", "interaction_share": "interaction"}
EFFECTS = {"embedding_effect": "embedding", "body_effect": "body", "interaction": "interaction"}
INTERVALS = "Bands are 95 % bootstrap intervals over prompts."
SUMMARY = ("js", "kl_div", "relative_diff", "direct_diff", "cosine", "cka")


def trajectories(entries: Sequence[Entry]) -> Iterator[Block]:
    """What lies between the two models, and what each says on the way."""
    panels = [
        PlotPanel(title, series, Axis(unit))
        for metric, (title, unit) in BETWEEN.items()
        if (series := _arms(entries, metric))
    ]
    if panels:
        only = f": {entries[0].name}" if len(entries) == 1 else ""
        yield Plot(f"Base against fine-tuned{only}", LAYER, Axis("value"), tuple(panels), caption=_caption(entries))
    for metric, (title, unit) in ALONG.items():
        sides = [(entry, _sides(entry, metric)) for entry in entries]
        panels = [PlotPanel(entry.name, series) for entry, series in sides if series]
        if panels:
            yield Plot(title, LAYER, Axis(unit), tuple(panels), caption=INTERVALS)


def summary(entries: Sequence[Entry]) -> Iterator[Block]:
    """Every capture in one row: replicates, seeds and the arms that are not drawn too."""
    usable = [entry for entry in entries if entry.usable]
    if usable:
        yield Table(
            title="Every capture in numbers",
            columns=("entry", "seed", "replicate", *SUMMARY, "js at the last layer"),
            rows=tuple(map(_summary, usable)),
            cells=tuple(entry.cells for entry in usable),
            caption="Means over prompts and over the outputs of all blocks.",
        )


def exchanged(entries: Sequence[Entry]) -> Iterator[Block]:
    """The factorial of embedding and body, and every comparison beside the others."""
    for metrics, title, label, caption in (
        (SHARES, "Share of embedding, body and interaction", "share",
         "Of the sum of squares between the four runs, at each layer. " + INTERVALS),
        (EFFECTS, "Size of the effects", "norm of the effect", INTERVALS),
    ):  # fmt: skip
        panels = [PlotPanel(entry.name, series) for entry in entries if (series := _factorial(entry, metrics))]
        if panels:
            yield Plot(title, LAYER, Axis(label), tuple(panels), caption=caption)
    panels = [PlotPanel(entry.name, _comparisons(entry)) for entry in entries]
    if any(len(panel.series) > 1 for panel in panels):
        names = "Each line compares two runs, the first as the base. "
        yield Plot("Divergence of every comparison", LAYER, Axis("js, nats"), tuple(panels), caption=names + INTERVALS)


def run_label(name: str) -> str:
    """A run's name for people."""
    return {"sft": "fine-tuned"}.get(name, name)


def _line(name: str, entry: Entry, kind: str, record: str, metric: str) -> Series | None:
    found = entry.captured.trajectory(kind, record, metric)
    if found is None:
        return None
    return Series(
        name=name, x=found.layers, y=found.values, y_interval=found.intervals, interval_style="band",
        cells=(entry.cells,), style="line+points" if len(found.layers) <= 16 else "line",
    )  # fmt: skip


def _arms(entries: Sequence[Entry], metric: str) -> tuple[Series, ...]:
    """A series per entry, empty where it has none: an entry has one colour in all charts. Nothing if all are empty."""
    lines = {e.name: _line(e.name, e, "pair", e.captured.passes.primary.name, metric) for e in entries}
    return tuple(line or Series(name=name, x=(), y=()) for name, line in lines.items()) if any(lines.values()) else ()


def _known(found: Iterable[Series | None]) -> tuple[Series, ...]:
    return tuple(series for series in found if series is not None)


def _sides(entry: Entry, metric: str) -> tuple[Series, ...]:
    primary = entry.captured.passes.primary
    return _known(_line(run_label(run), entry, "run", run, metric) for run in (primary.left, primary.right))


def _factorial(entry: Entry, metrics: Mapping[str, str]) -> tuple[Series, ...]:
    return _known(_line(name, entry, "factorial", "factorial", metric) for metric, name in metrics.items())


def _comparisons(entry: Entry) -> tuple[Series, ...]:
    return _known(_line(c.name, entry, "pair", c.name, "js") for c in entry.captured.passes.comparisons)


def _caption(entries: Sequence[Entry]) -> str:
    counts = sorted({max(entry.captured.prompt_counts.values(), default=0) for entry in entries})
    many = any(len(entry.captured.prompt_counts) > 1 for entry in entries)
    over = f"Means over {' or '.join(map(str, counts))} prompts; a prompt's positions"
    return f"{over}{' and variants' if many else ''} are averaged first. {INTERVALS}"


def _summary(entry: Entry) -> tuple[Value, ...]:
    primary = entry.captured.passes.primary.name
    found = {metric: entry.captured.trajectory("pair", primary, metric) for metric in SUMMARY}
    last = found["js"].values[-1] if found["js"] else None
    return (*entry.row_head, *map(_mean, found.values()), last)


def _mean(found: Trajectory | None) -> float | None:
    known = [v for layer, v in zip(found.layers, found.values, strict=True) if layer >= 0] if found else []
    return fmean(known) if known else None
