"""Residual comparisons in numbers: means and maxima along layers or positions, and where they are largest."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from nullarm.errors import UsageError, nearest
from nullarm.protocols.residual.export.grids import (
    Grid,
    Source,
    build_logit_grid,
    build_residual_grid,
    build_run_grid,
)
from nullarm.protocols.residual.export.schema import Record
from nullarm.protocols.residual.export.sources import sources
from nullarm.protocols.residual.runs import SIDES

Axis = Literal["layer", "token"]
RecordType = Literal["pairwise", "runs"]
DEFAULT_METRIC = {"pairwise": "kl_div", "runs": "entropy"}

COLUMNS = (
    "kind", "input", "variant", "record", "metric", "layer", "position", "token", "prompt", "count", "mean", "max",
    "value",
)  # fmt: skip
"""Of the rows. A row of kind `summary` has count, mean and max of a layer or a position; one of kind `hotspot` has the
value at a layer and position of a prompt. What a row has not is None."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Request:
    """What is summarised.

    Attributes:
        metrics: Metrics; `kl_div`, of runs `entropy`, when there are none and no tokens.
        axis: Along layers, or along token positions.
        record_type: Comparisons, or the runs of multi-pass records.
        records: Names of comparisons or runs; all of them when there are none.
        top_n: Hotspots of each summary.
        token_ids: Tracked tokens whose logits in the comparisons are summarised too.
        logit_source: Whose logits; `diff` is fine-tuned − base.
    """

    metrics: tuple[str, ...] = ()
    axis: Axis = "layer"
    record_type: RecordType = "pairwise"
    records: tuple[str, ...] = ()
    top_n: int = 5
    token_ids: tuple[int, ...] = ()
    logit_source: Source = "diff"

    def grids(self, record: Record) -> Iterator[Grid]:
        """The grids that are asked for, of one record: the base model against the fine-tuned one first."""
        record = _primary_first(record)
        for metric in self.metrics or (DEFAULT_METRIC[self.record_type],):
            build = build_residual_grid if self.record_type == "pairwise" else build_run_grid
            yield from build([record], metric)
        for token in self.token_ids:
            yield from build_logit_grid([record], token, self.logit_source)


@dataclass
class Summary:
    """A metric of one comparison or run over all prompts of an input: running counts, sums, maxima and hotspots.

    A hotspot is where the metric is largest in magnitude; a cosine, where it is smallest: where most has changed.
    """

    input: str
    variant: str
    record: str
    metric: str
    axis: Axis
    top_n: int
    _along: dict[int, Row] = field(default_factory=dict)
    _hotspots: list[tuple[float, Row]] = field(default_factory=list)

    def add(self, grid: Grid) -> None:
        """Take in one prompt."""
        values = grid.values if self.axis == "layer" else grid.values.T
        for index, line in enumerate(values):
            if len(known := line[np.isfinite(line)]):
                row = self._row(grid, index)
                row["count"] += len(known)
                row["mean"] += float(known.sum())  # a sum until `rows` divides it
                row["max"] = max(row["max"], float(known.max()))
        found = [*self._hotspots, *_hottest(grid, self.top_n)]
        self._hotspots = sorted(found, key=lambda hot: -hot[0])[: self.top_n]

    def rows(self) -> Iterator[Row]:
        """Along the axis, then the hotspots."""
        names = {"input": self.input, "variant": self.variant, "record": self.record, "metric": self.metric}
        empty = dict.fromkeys(COLUMNS)
        for _, row in sorted(self._along.items()):
            yield {**empty, "kind": "summary", **names, **row, "mean": row["mean"] / row["count"]}
        yield from ({**empty, "kind": "hotspot", **names, **row} for _, row in self._hotspots)

    def _row(self, grid: Grid, index: int) -> Row:
        start = {"count": 0, "mean": 0.0, "max": -np.inf}
        if self.axis == "layer":
            return self._along.setdefault(grid.layers[index], {"layer": grid.layers[index], **start})
        position, token = grid.positions[index], grid.tokens[index]
        row = self._along.setdefault(position, {"position": position, "token": token, **start})
        row["token"] = token if row["token"] == token else None  # prompts differ in what stands there
        return row


def summarise(inputs: Iterable[Path], request: Request) -> list[Summary]:
    """Summaries by input, variant, comparison or run, and metric. One record is in memory at a time.

    Raises:
        UsageError: An input is none, a metric, record or token is unknown, or nothing of the record type is there.
        FormatError: A file is of neither schema.
        IntegrityError: An artefact is not what its hash says.
    """
    if request.record_type == "runs" and request.token_ids:
        raise UsageError("logits of tracked tokens are summarised for comparisons", valid="--record-type pairwise")
    found: dict[tuple[str, str, str, str], Summary] = {}
    names: dict[str, None] = {}
    for path in inputs:
        for name, records in sources(path):
            for grid in (grid for record in records for grid in request.grids(record)):
                names[grid.record] = None
                if request.records and grid.record not in request.records:
                    continue
                key = (name, grid.variant, grid.record, grid.metric)
                summary = found.setdefault(key, Summary(*key, request.axis, request.top_n))
                summary.add(grid)
    _require_records(request, names)
    return list(found.values())


def _require_records(request: Request, names: Collection[str]) -> None:
    if not names:
        raise UsageError(
            f"the inputs hold no records of type {request.record_type!r}", valid="`runs` needs a multi-pass capture"
        )
    if unknown := next((name for name in request.records if name not in names), None):
        what = "comparison" if request.record_type == "pairwise" else "run"
        raise UsageError(f"the inputs hold no {what} {unknown!r}{nearest(unknown, names)}", valid=names)


def _primary_first(record: Record) -> Record:
    """The record with the comparison of both models, each with its own parts, before those that exchange some."""
    if "pairwise" not in record:
        return record
    parts = ("model", "embedding_source", "unembedding_source")
    sources_of = {run.get("name"): {run.get(part) for part in parts} for run in record["runs"]}

    def exchanges(pair: Record) -> bool:
        return [sources_of.get(pair.get(f"{side}_run")) for side in SIDES] != [{side} for side in SIDES]

    return {**record, "pairwise": sorted(record["pairwise"], key=exchanges)}


def _hottest(grid: Grid, top_n: int) -> Iterator[tuple[float, Row]]:
    heat = -grid.values if "cosine" in grid.metric else np.abs(grid.values)
    flat = np.where(np.isfinite(heat), heat, -np.inf).ravel()
    for index in np.argsort(-flat, kind="stable")[:top_n]:
        layer, column = divmod(int(index), len(grid.positions))
        if np.isfinite(flat[index]):
            yield (
                float(flat[index]),
                {
                    "layer": grid.layers[layer],
                    "position": grid.positions[column],
                    "token": grid.tokens[column],
                    "prompt": grid.prompt,
                    "value": float(grid.values[layer, column]),
                },
            )
