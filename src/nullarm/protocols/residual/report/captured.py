"""A finished capture read back a piece at a time: no table of a large study is held whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, reduce
from operator import and_, or_
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds

from nullarm.protocols.residual.runs import Passes
from nullarm.protocols.residual.tables import CAPTURE, LAYERS_NAME, PROMPTS_NAME, VOCABULARY_NAME
from nullarm.store.record import FinishedCell


@dataclass(frozen=True)
class Trajectory:
    """One metric of one record, layer by layer.

    Attributes:
        layers: −1 is the embedding output, k the output of block k.
        values: Mean over prompts; a layer without one is left out.
        intervals: Ends of the 95 % interval over prompts; None where there is none.
    """

    layers: tuple[int, ...]
    values: tuple[float, ...]
    intervals: tuple[tuple[float, float] | None, ...]


@dataclass(frozen=True, eq=False)
class Captured:
    """What a finished capture holds."""

    finished: FinishedCell
    _paths: dict[str, Path] = field(default_factory=dict)

    @cached_property
    def about(self) -> Mapping[str, Any]:
        """What was captured (see `tables.CAPTURE`)."""
        found: Mapping[str, Any] = self.finished.json(CAPTURE)
        return found

    @cached_property
    def passes(self) -> Passes:
        """Runs and comparisons."""
        return Passes.from_json(self.about)

    @cached_property
    def variant(self) -> str:
        """The variant that single prompts are shown under: `identity` when it was read, else the first one."""
        names = self.prompt_counts
        return "identity" if "identity" in names else next(iter(names))

    @cached_property
    def prompt_counts(self) -> Mapping[str, int]:
        """Number of prompts by variant."""
        counts: dict[str, int] = {}
        for batch in self.batches(PROMPTS_NAME, ["variant"]):
            for name in batch["variant"].to_pylist():
                counts[name] = counts.get(name, 0) + 1
        return counts

    @cached_property
    def vocabulary(self) -> Mapping[int, str]:
        """Decoded text of every shared token, by base token id."""
        table = self.finished.table(VOCABULARY_NAME)
        return dict(zip(table["id"].to_pylist(), table["token"].to_pylist(), strict=True))

    @cached_property
    def texts(self) -> Mapping[str, str]:
        """Decoded text of the tokens that the prompts are made of, by the vocabulary's own string."""
        return {
            token: self.vocabulary.get(i, token)
            for batch in self.batches(PROMPTS_NAME, ["ids", "tokens"])
            for row in batch.to_pylist()
            for i, token in zip(row["ids"], row["tokens"], strict=True)
        }

    @cached_property
    def _trajectories(self) -> Mapping[tuple[str, str, str], Trajectory | None]:
        found: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
        for row in self.finished.table(LAYERS_NAME).to_pylist():
            found.setdefault((row["kind"], row["record"], row["metric"]), []).append(row)
        return {key: _trajectory(sorted(rows, key=lambda row: int(row["layer"]))) for key, rows in found.items()}

    def trajectory(self, kind: str, record: str, metric: str) -> Trajectory | None:
        """Mean over prompts by layer; None where nothing was measured."""
        return self._trajectories.get((kind, record, metric))

    def tokens(self, prompt: int, variant: str) -> Sequence[str]:
        """Decoded token at each position; the vocabulary's own string where the token is not shared."""
        (row,) = self.rows(PROMPTS_NAME, ["ids", "tokens"], prompt=[prompt], variant=[variant]).to_pylist()
        return [self.vocabulary.get(i, token) for i, token in zip(row["ids"], row["tokens"], strict=True)]

    def batches(self, name: str, columns: Sequence[str], **where: Sequence[object]) -> Iterator[pa.RecordBatch]:
        """Columns of an artefact, for rows whose named columns hold one of the values, in order, a batch at a time."""
        yield from self._dataset(name).to_batches(columns=list(columns), filter=_among(where))

    def rows(self, name: str, columns: Sequence[str], **where: Sequence[object]) -> pa.Table:
        """The same as one table, for what is known to be small."""
        return self._dataset(name).to_table(columns=list(columns), filter=_among(where))

    def _dataset(self, name: str) -> ds.Dataset:
        if name not in self._paths:  # the hash of a large file is checked once
            self._paths[name] = self.finished.artefact(name)
        return ds.dataset(self._paths[name], format="parquet")


def _among(where: Mapping[str, Sequence[object]]) -> ds.Expression | None:
    """Equality, unlike membership, lets whole row groups be skipped by their statistics."""
    each = [reduce(or_, [ds.field(column) == value for value in values]) for column, values in where.items()]
    return reduce(and_, each) if each else None


def _trajectory(rows: Sequence[Mapping[str, Any]]) -> Trajectory | None:
    known = [row for row in rows if row["value"] is not None]
    if not known:
        return None
    return Trajectory(
        tuple(row["layer"] for row in known),
        tuple(row["value"] for row in known),
        tuple(None if row["low"] is None else (row["low"], row["high"]) for row in known),
    )
