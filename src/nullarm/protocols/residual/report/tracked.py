"""Tracked tokens: their logits by layer, at the last position of the prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from nullarm.protocols.residual.report.captured import Captured
from nullarm.protocols.residual.report.entries import Entry
from nullarm.protocols.residual.report.layers import LAYER, run_label
from nullarm.protocols.residual.tables import PROMPTS_NAME, TRACKED_NAME
from nullarm.report import Axis, Block, Note, Plot, PlotPanel, Series

TOKENS = 6
"""Tokens that are drawn."""
COLUMNS = ("prompt", "position", "layer", "token_id", "logit")
Means = Mapping[tuple[str, int], Mapping[int, float]]
"""(run, token id) to layer to mean logit."""


def tracked(entries: Sequence[Entry]) -> Iterator[Block]:
    """Per token a figure with a panel per entry: both models."""
    found = {entry: last_position_means(entry.captured) for entry in entries if entry.captured.about["tracked"]}
    labels = list(dict.fromkeys(label for entry in found for label in _labels(entry)))
    for label in labels[:TOKENS]:
        panels = [PlotPanel(entry.name, _series(entry, means, label)) for entry, means in found.items()]
        yield Plot(
            title=f"Logit of “{label}” at the last position", x=LAYER, y=Axis("logit"),
            panels=tuple(panel for panel in panels if panel.series),
            caption="Mean over prompts, read through the lens at each layer.",
        )  # fmt: skip
    if left_out := labels[TOKENS:]:
        yield Note(f"Tracked and not drawn: {', '.join(left_out)}. Their logits are in the table `{TRACKED_NAME}`.")


def last_position_means(captured: Captured) -> Means:
    """Mean over prompts of each tracked token's logit at each prompt's last compared position, by run and layer."""
    primary = captured.passes.primary
    return {
        (run, token): by_layer
        for run in (primary.left, primary.right)
        for token, by_layer in _means(captured, run, _last_positions(captured)).items()
    }


def _last_positions(captured: Captured) -> dict[int, int]:
    rows = captured.rows(PROMPTS_NAME, ["prompt", "positions"], variant=[captured.variant])
    return {row["prompt"]: row["positions"][-1] for row in rows.to_pylist() if row["positions"]}


def _means(captured: Captured, run: str, last: Mapping[int, int]) -> dict[int, dict[int, float]]:
    """Token id to layer to mean logit."""
    sums: dict[int, dict[int, list[float]]] = {}
    ends = np.full(max(last, default=0) + 1, -1)
    ends[list(last)] = list(last.values())
    for batch in captured.batches(TRACKED_NAME, COLUMNS, variant=[captured.variant], record=[run]):
        prompts, positions, layers, tokens, logits = (batch[n].to_numpy(zero_copy_only=False) for n in COLUMNS)
        for i in np.flatnonzero((positions == ends[prompts]) & ~np.isnan(logits)).tolist():
            found = sums.setdefault(int(tokens[i]), {}).setdefault(int(layers[i]), [0.0, 0.0])
            found[0] += float(logits[i])
            found[1] += 1
    return {t: {i: total / n for i, (total, n) in sorted(by_layer.items())} for t, by_layer in sums.items()}


def _labels(entry: Entry) -> dict[str, int]:
    """Token id by label: entries may have different vocabularies."""
    return {str(label): int(token) for token, label in entry.captured.about["tracked"].items()}


def _series(entry: Entry, means: Means, label: str) -> tuple[Series, ...]:
    primary, token = entry.captured.passes.primary, _labels(entry).get(label)
    return tuple(
        Series(
            name=run_label(run), x=list(found), y=list(found.values()), cells=(entry.cells,),
            style="line+points" if len(found) <= 16 else "line",
        )
        for run in (primary.left, primary.right)
        if token is not None and (found := means.get((run, token)))
    )  # fmt: skip
