"""Layer × position grids of a residual comparison, for notebooks and for the report.

    from nullarm.protocols.residual.export.grids import build_residual_grid
    from nullarm.protocols.residual.export.sources import records_from

    grids = build_residual_grid(records_from("runs/qwen"), "kl_div")
    grids[0].to_frame()

Records are those of the source's JSON files, single-pass or multi-pass, or of a capture's tables (of a finished cell
through `json_records.records_of`). Every difference is fine-tuned − base, in a pair of runs right − left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from nullarm.errors import FormatError, UsageError, nearest
from nullarm.protocols.residual.export.schema import PAIR_POSITION, RUN_POSITION, Record

Floats = npt.NDArray[np.float64]
Position = Mapping[str, Any]
Source = Literal["base", "sft", "diff"]
SOURCES: tuple[Source, ...] = ("base", "sft", "diff")
Direction = Literal["increased", "decreased"]

DIFFERENCES = {"entropy_delta": ("entropy_base", "entropy_sft"), "norm_delta": ("norm_base", "norm_sft")}
"""Metrics of a comparison that its records do not hold: fine-tuned − base."""
_OTHER = ("token", "top_k_increased", "top_k_decreased", "top_k_logits", "tracked_token_logits")
PAIR_METRICS = (*(name for name in PAIR_POSITION if name not in _OTHER), *DIFFERENCES)
RUN_METRICS = tuple(name for name in RUN_POSITION if name not in _OTHER)


@dataclass(frozen=True, eq=False)
class Grid:
    """One metric of one comparison, or run, on one prompt.

    Attributes:
        values: [layers, positions], NaN where there is none.
        layers: Layer of each row; layer k is the output of block k.
        positions: Position of each column.
        tokens: Token of each column.
        metric: What the values are.
        record: Name of the comparison (`default`, the pair of a multi-pass record, an embedding variant) or run.
        prompt: Index of the prompt.
        variant: Variant of the prompt.
    """

    values: Floats
    layers: tuple[int, ...]
    positions: tuple[int, ...]
    tokens: tuple[str, ...]
    metric: str
    record: str
    prompt: int
    variant: str

    @property
    def label(self) -> str:
        """Name for people."""
        return f"{self.metric} · {self.record} · prompt {self.prompt} · {self.variant}"

    def to_frame(self) -> Any:
        """As a `pandas.DataFrame`: a row per layer, a column per (position, token)."""
        import pandas as pd

        columns = pd.MultiIndex.from_arrays([self.positions, self.tokens], names=["position", "token"])
        return pd.DataFrame(self.values, index=pd.Index(self.layers, name="layer"), columns=columns)


def build_residual_grid(records: Iterable[Record], metric: str) -> list[Grid]:
    """A metric of every comparison in the records.

    Args:
        records: Of either schema; a multi-pass record holds a comparison per pair.
        metric: One of `PAIR_METRICS`.

    Raises:
        UsageError: There is no such metric.
    """
    _require_metric(metric, PAIR_METRICS, "comparisons")
    return [_grid(*pair, metric, _pair_value(metric)) for record in records for pair in _pairs(record)]


def build_run_grid(records: Iterable[Record], metric: str) -> list[Grid]:
    """A metric of every run in the records. Single-pass records have none.

    Args:
        records: Multi-pass records.
        metric: One of `RUN_METRICS`.

    Raises:
        UsageError: There is no such metric.
    """
    _require_metric(metric, RUN_METRICS, "runs")
    return [_grid(*run, metric, lambda at: at.get(metric)) for record in records for run in _runs(record)]


def build_logit_grid(records: Iterable[Record], token_id: int, source: Source = "diff") -> list[Grid]:
    """The logit of a tracked token in every comparison in the records.

    Args:
        records: Of either schema.
        token_id: The token.
        source: Whose logit; `diff` is fine-tuned − base.

    Raises:
        UsageError: A comparison does not track the token.
    """
    grids = []
    for record in records:
        for head, entry, name in _pairs(record):
            grid = _grid(head, entry, name, f"logit_{source}:{token_id}", _logit_value(str(token_id), source))
            if np.isnan(grid.values).all():
                _refuse_token(token_id, entry, grid.label)
            grids.append(grid)
    return grids


def build_topk_grid(records: Iterable[Record], token_id: int, direction: Direction = "increased") -> list[Grid]:
    """How far fine-tuning moved a token's logit where it is among the top k that moved in this direction, else NaN.

    Args:
        records: Of either schema.
        token_id: The token.
        direction: `increased`, or `decreased`, whose values are negative.
    """

    def value(at: Position) -> float | None:
        moved = at.get(f"top_k_{direction}") or {"indices": [], "values": []}
        return dict(zip(moved["indices"], moved["values"], strict=False)).get(token_id)

    return [_grid(*pair, f"{direction}:{token_id}", value) for record in records for pair in _pairs(record)]


Entry = tuple[Record, Record, str]
"""The record, the comparison or run in it, and the name of that."""


def _pairs(record: Record) -> Iterator[Entry]:
    if "pairwise" in record:
        yield from ((record, pair, str(pair.get("name", index))) for index, pair in enumerate(record["pairwise"]))
    else:
        yield record, record, str(record.get("metadata", {}).get("embedding_variant", "default"))


def _runs(record: Record) -> Iterator[Entry]:
    yield from ((record, run, str(run.get("name", index))) for index, run in enumerate(record.get("runs", ())))


def _grid(head: Record, entry: Record, name: str, metric: str, value: Callable[[Position], float | None]) -> Grid:
    layers = sorted(entry["layers"], key=int)
    positions = sorted({p for layer in layers for p in entry["layers"][layer]}, key=int)
    values = np.full((len(layers), len(positions)), np.nan)
    for row, layer in enumerate(layers):
        found = entry["layers"][layer]
        for column, position in enumerate(positions):
            number = value(found[position]) if position in found else None
            if number is not None:
                values[row, column] = _number(number, f"{metric} of {name} at layer {layer}, position {position}")
    metadata, tokens = head.get("metadata") or {}, head["tokens"]
    prompt = metadata.get("prompt_idx", 0)
    places = tuple(map(int, positions))
    return Grid(
        values=values,
        layers=tuple(map(int, layers)),
        positions=places,
        tokens=tuple(str(tokens[place]) if place < len(tokens) else "" for place in places),
        metric=metric,
        record=name,
        prompt=prompt if isinstance(prompt, int) else 0,
        variant=str(metadata.get("variant_name", "identity")),
    )


def _number(value: object, what: str) -> float:
    if isinstance(value, int | float):
        return float(value)
    raise FormatError(f"{what} is no number", value=value)


def _pair_value(metric: str) -> Callable[[Position], float | None]:
    if metric not in DIFFERENCES:
        return lambda at: at.get(metric)
    left, right = DIFFERENCES[metric]
    return lambda at: _difference(at.get(left), at.get(right))


def _logit_value(token: str, source: Source) -> Callable[[Position], float | None]:
    def value(at: Position) -> float | None:
        logits = (at.get("tracked_token_logits") or {}).get(token) or {}
        if source == "diff":
            return _difference(logits.get("base"), logits.get("sft"))
        found: float | None = logits.get(source)
        return found

    return value


def _difference(base: float | None, sft: float | None) -> float | None:
    return None if base is None or sft is None else sft - base


def _require_metric(metric: str, known: tuple[str, ...], what: str) -> None:
    if metric not in known:
        raise UsageError(f"{what} have no metric {metric!r}{nearest(metric, known)}", valid=known)


def _refuse_token(token_id: int, entry: Record, label: str) -> None:
    positions = (at for found in entry["layers"].values() for at in found.values())
    tracked = {token for at in positions for token in at.get("tracked_token_logits") or {}}
    raise UsageError(f"token {token_id} was not tracked ({label})", valid=sorted(map(int, tracked)) or "no token was")
