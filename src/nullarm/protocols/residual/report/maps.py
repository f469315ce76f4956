"""Layer × position maps of single prompts: the first one, and the one where the models differ most."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nullarm.protocols.residual.report.captured import Captured
from nullarm.protocols.residual.report.entries import Entry, Group
from nullarm.protocols.residual.report.hotspots import largest
from nullarm.protocols.residual.tables import SCALARS_NAME, TOPK_NAME
from nullarm.report import Block, Heatmap, HeatmapPanel, Note
from nullarm.report.numbers import show

METRICS = {
    "js": ("Jensen–Shannon divergence, nats", "How differently the two models would go on, read at each layer."),
    "relative_diff": ("relative difference", "‖fine-tuned − base‖ / ‖base‖, changes inherited from below included."),
    "direct_diff": (
        "changed by the layer itself",
        "How far the fine-tuned block's output lies from the base block's when both read the base's residual: nothing "
        "is inherited from below.",
    ),
}
POSITIONS = 32
"""Columns of a map; of a longer prompt those around its largest divergence are shown."""
MOST_VALUES = 48_000
"""Values in all maps of a page, at some 400 bytes each with what hovering shows."""
SHIFTED = 5
"""Tokens that hovering shows, of those that moved most in either direction."""
CHARACTERS = 72
"""Of a prompt's text, in a caption or a table."""
Place = tuple[int, int]
"""Layer and position."""


@dataclass(frozen=True)
class Window:
    """Part of a prompt that is shown: the positions from `first` to `last`, both included."""

    prompt: int
    first: int
    last: int


def maps(groups: Sequence[Group]) -> Iterator[Block]:
    """Per group and metric a figure: each prompt for the treatment and for its controls, on one colour scale."""
    drawn, room = 0, MOST_VALUES
    for group in groups:
        windows = _windows(group[0].captured)
        room -= sum(_size(entry, window) for entry in group for window in windows) * len(METRICS)
        if room < 0 and drawn:
            break
        drawn += 1
        yield from _figures(group, windows)
    if left_out := [group[0].name for group in groups[drawn:]]:
        yield Note(f"Not mapped, to keep the page readable: {', '.join(left_out)}. Their numbers are in the tables.")


def token_label(text: str) -> str:
    """A token with its blanks made visible where nothing else is there, or where they break the line."""
    shown = text.replace("\n", "⏎").replace("\r", "␍").replace("\t", "⇥")
    return shown if shown.strip() else "␣" * len(shown)


def prompt_line(tokens: Sequence[str]) -> str:
    """A prompt on one line, its end left out when it is long."""
    line = " ".join("".join(tokens).split())
    return line if len(line) <= CHARACTERS else f"{line[: CHARACTERS - 1]}…"


def prompt_label(prompt: int, tokens: Sequence[str]) -> str:
    """A sentence that says which prompt has this number."""
    return f"Prompt {prompt}: “{prompt_line(tokens)}”."


def _figures(group: Group, windows: Sequence[Window]) -> Iterator[Heatmap]:
    parts = [(entry, window, _Map(entry, window)) for window in windows for entry in group]
    for metric, (label, meaning) in METRICS.items():
        panels = tuple(
            part.panel(f"prompt {window.prompt} · {entry.name}", metric)
            for entry, window, part in parts
            if part.has(metric)
        )
        if panels:
            yield Heatmap(
                title=f"{group[0].name}: {label}, by layer and position", x_label="token", y_label="layer",
                value_label=label, panels=panels, caption=f"{meaning} {_shown(group[0].captured, windows)}",
            )  # fmt: skip


def _shown(captured: Captured, windows: Sequence[Window]) -> str:
    shown = dict.fromkeys(window.prompt for window in windows)
    sentences = [prompt_label(prompt, captured.tokens(prompt, captured.variant)) for prompt in shown]
    sentences.append(f"Prompt {windows[-1].prompt} has the largest divergence at a single place.")
    if captured.variant != "identity":
        sentences.append(f"Prompts are shown under variant {captured.variant}.")
    if any(window.last - window.first + 1 == POSITIONS for window in windows):
        sentences.append(f"Of a longer prompt the {POSITIONS} positions around its largest divergence are shown.")
    return " ".join([*sentences, "Hovering shows the tokens whose logits fine-tuning moved most."])


def _windows(captured: Captured) -> list[Window]:
    """The first prompt, and the one with the largest divergence; the same one once."""
    hottest = largest(captured, "js", 1, variants=(captured.variant,))
    chosen = dict.fromkeys([0, *(spot.prompt for spot in hottest)])
    found = (_window(captured, prompt) for prompt in chosen)
    return [window for window in found if window is not None]


def _window(captured: Captured, prompt: int) -> Window | None:
    rows = _rows(captured, SCALARS_NAME, ["position", "js"], prompt)
    if not rows:
        return None
    places = sorted({row["position"] for row in rows})
    hottest = max(rows, key=lambda row: row["js"] or 0.0)["position"]
    start = max(0, min(places.index(hottest) - POSITIONS // 2, len(places) - POSITIONS))
    kept = places[start : start + POSITIONS]
    return Window(prompt, kept[0], kept[-1])


def _size(entry: Entry, window: Window) -> int:
    return (int(entry.captured.about["layers"]) + 1) * (window.last - window.first + 1)


def _rows(captured: Captured, name: str, columns: Sequence[str], prompt: int) -> list[dict[str, Any]]:
    """Rows of the primary comparison on one prompt."""
    primary = captured.passes.primary.name
    table = captured.rows(name, columns, prompt=[prompt], variant=[captured.variant], kind=["pair"], record=[primary])
    found: list[dict[str, Any]] = table.to_pylist()
    return found


class _Map:
    """All metrics of one entry on a part of one prompt."""

    def __init__(self, entry: Entry, window: Window) -> None:
        captured = entry.captured
        rows = _rows(captured, SCALARS_NAME, ["layer", "position", *METRICS], window.prompt)
        kept = [row for row in rows if window.first <= row["position"] <= window.last]
        self._cells = entry.cells
        self._values: Mapping[Place, Mapping[str, Any]] = {(row["layer"], row["position"]): row for row in kept}
        self._positions = sorted({position for _, position in self._values})
        self._tokens = captured.tokens(window.prompt, captured.variant)
        self._shifts = _shifts(captured, window)

    def has(self, metric: str) -> bool:
        """Whether it was measured anywhere here."""
        return bool(self._measured(metric))

    def panel(self, title: str, metric: str) -> HeatmapPanel:
        """The map of one metric; a layer where it was not measured has no row."""
        none: Mapping[str, Any] = {}
        layers = self._measured(metric)
        return HeatmapPanel(
            title=title,
            x=tuple(f"{position} {token_label(self._tokens[position]).strip()}" for position in self._positions),
            y=tuple(show(layer) for layer in layers),
            values=[[self._values.get((i, p), none).get(metric) for p in self._positions] for i in layers],
            hover=[[self._shifts.get((i, p), "") for p in self._positions] for i in layers],
            cells=self._cells,
        )

    def _measured(self, metric: str) -> list[int]:
        """Layers, the last one on top."""
        known = {layer for (layer, _), row in self._values.items() if row[metric] is not None}
        return sorted(known, reverse=True)


def _shifts(captured: Captured, window: Window) -> dict[Place, str]:
    """What hovering shows: the tokens whose logits fine-tuning raised and lowered most."""
    columns = ["layer", "position", "direction", "indices", "values"]
    texts: dict[Place, dict[str, str]] = {}
    for row in _rows(captured, TOPK_NAME, columns, window.prompt):
        if window.first <= row["position"] <= window.last:
            moved = zip(row["indices"][:SHIFTED], row["values"][:SHIFTED], strict=True)
            text = ", ".join(f'"{token_label(_token(captured, i))}" {value:+.2f}' for i, value in moved)
            texts.setdefault((row["layer"], row["position"]), {})[row["direction"]] = text
    return {place: "\n".join(_lines(found)) for place, found in texts.items()}


def _lines(found: Mapping[str, str]) -> Iterator[str]:
    for direction, word in (("increased", "up"), ("decreased", "down")):
        if found.get(direction):
            yield f"{word}: {found[direction]}"


def _token(captured: Captured, token_id: int) -> str:
    return captured.vocabulary.get(token_id, f"token {token_id}")
