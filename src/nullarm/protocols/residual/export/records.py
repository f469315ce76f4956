"""The tables of a capture as records of the source's two JSON schemas, one prompt under one variant at a time.

Single pass: a record per prompt, variant and comparison. Multi-pass: a record per prompt and variant, with all runs and
all pairs. Layer k is the output of block k; the embedding output (layer −1) has no place in the source's files. Numbers
are those of the tables, unrounded; one that is null there is None here. `embedding_variant` names the comparison:
`default` the plain one, `multi_pass` the factorial, as in the source, which also writes out what `self` stands for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nullarm.errors import IntegrityError
from nullarm.protocols.residual.export.schema import FORMAT_VERSION, Record
from nullarm.protocols.residual.runs import single_pass
from nullarm.protocols.residual.tables import CAPTURE, PROMPTS_NAME, SCALARS_NAME, TOPK_NAME, TRACKED_NAME
from nullarm.store.record import FinishedCell

Number = float | None
Place = tuple[int, str]
"""Prompt and variant."""

PLAIN = single_pass().comparisons[0].name
_KEYS = ("prompt", "variant", "kind", "record", "layer", "position")
_METRICS = ("entropy", "norm", "norm_delta", "cosine_prev", "kl_div", "cosine", "norm_diff")


def records_of(finished: FinishedCell) -> Iterator[Record]:
    """Records of a finished capture, in the order of its tables.

    Of every table no more than two row groups are in memory at a time.

    Raises:
        IntegrityError: An artefact is not what its hash says, or the tables differ in the order of their prompts.
    """
    capture = finished.json(CAPTURE)
    records = _multi_pass if capture["multi_pass"] else _single_pass
    for read in _prompts(finished):
        yield from records(read, capture)


@dataclass(frozen=True)
class _Read:
    """All numbers of one prompt under one variant."""

    prompt: int
    variant: str
    text: str
    tokens: Sequence[str]
    scalars: Mapping[tuple[str, str, int], Mapping[int, Mapping[str, Number]]]
    """(kind, record, layer) to position to metrics."""
    ranked: Mapping[tuple[str, str, int, int, str], Record]
    """(kind, record, layer, position, direction) to indices and values."""
    tracked: Mapping[tuple[str, int, int], Mapping[str, float]]
    """(run, layer, position) to logits by token id."""

    def head(self, embedding_variant: str) -> Record:
        """What a record begins with."""
        metadata = {"prompt_idx": self.prompt, "variant_name": self.variant, "embedding_variant": embedding_variant}
        return {"prompt": self.text, "tokens": list(self.tokens), "metadata": metadata}

    def pair_layers(self, pair: str, left: str, right: str) -> Record:
        """`layers` of a comparison."""
        layers: Record = {}
        for layer, positions in self._blocks("pair", pair):
            sides = self.scalars["run", left, layer], self.scalars["run", right, layer]
            layers[str(layer)] = {
                str(p): self._pair_position(found, (sides[0][p], sides[1][p]), (pair, left, right), layer, p)
                for p, found in positions.items()
            }
        return layers

    def run_layers(self, run: str) -> Record:
        """`layers` of a run."""
        return {
            str(layer): {str(p): self._run_position(found, run, layer, p) for p, found in positions.items()}
            for layer, positions in self._blocks("run", run)
        }

    def _blocks(self, kind: str, record: str) -> Iterator[tuple[int, Mapping[int, Mapping[str, Number]]]]:
        for (its_kind, its_record, layer), positions in self.scalars.items():
            if (its_kind, its_record) == (kind, record) and layer >= 0:
                yield layer, positions

    def _pair_position(
        self, pair: Mapping[str, Number], sides: tuple[Mapping[str, Number], Mapping[str, Number]],
        names: tuple[str, str, str], layer: int, position: int,
    ) -> Record:  # fmt: skip
        (base, sft), (name, left, right) = sides, names
        logits = self.tracked.get((left, layer, position), {}), self.tracked.get((right, layer, position), {})
        return {
            "token": self.tokens[position],
            "top_k_increased": self._top("pair", name, layer, position, "increased"),
            "top_k_decreased": self._top("pair", name, layer, position, "decreased"),
            "entropy_base": base["entropy"],
            "entropy_sft": sft["entropy"],
            "kl_div": pair["kl_div"],
            "tracked_token_logits": {
                token: {"base": value, "sft": logits[1][token]}
                for token, value in logits[0].items()
                if token in logits[1]
            },
            "cosine_sim": pair["cosine"],
            "norm_base": base["norm"],
            "norm_sft": sft["norm"],
            "norm_diff": pair["norm_diff"],
            "base_cosine_prev": base["cosine_prev"],
            "base_norm_delta": base["norm_delta"],
            "sft_cosine_prev": sft["cosine_prev"],
            "sft_norm_delta": sft["norm_delta"],
        }

    def _run_position(self, found: Mapping[str, Number], run: str, layer: int, position: int) -> Record:
        return {
            "token": self.tokens[position],
            "entropy": found["entropy"],
            "norm": found["norm"],
            "norm_delta": found["norm_delta"],
            "cosine_prev": found["cosine_prev"],
            "top_k_logits": self._top("run", run, layer, position, "top"),
            "tracked_token_logits": dict(self.tracked.get((run, layer, position), {})),
        }

    def _top(self, *key: Any) -> Record:
        return self.ranked.get(key) or {"indices": [], "values": []}


def _single_pass(read: _Read, capture: Record) -> Iterator[Record]:
    runs = {run["name"]: run for run in capture["runs"]}
    for comparison in capture["comparisons"]:
        name, left, right = comparison["name"], comparison["left"], comparison["right"]
        yield {
            **read.head("default" if name == PLAIN else name),
            "swap_options": {"base": _sources(runs[left]), "sft": _sources(runs[right])},
            "layers": read.pair_layers(name, left, right),
        }


def _multi_pass(read: _Read, capture: Record) -> Iterator[Record]:
    head = read.head("multi_pass")
    runs = {run["name"]: run for run in capture["runs"]}
    yield {
        "format_version": FORMAT_VERSION,
        **head,
        "metadata": {**head["metadata"], "multi_pass": True},
        "runs": [
            {
                "name": name,
                "model": run["body"],
                **_sources(run),
                "metadata": {**head["metadata"], "run_name": name},
                "layers": read.run_layers(name),
            }
            for name, run in runs.items()
        ],
        "pairwise": [_pair(read, head, runs, comparison) for comparison in capture["comparisons"]],
    }


def _pair(read: _Read, head: Record, runs: Mapping[str, Record], comparison: Record) -> Record:
    name, left, right = comparison["name"], comparison["left"], comparison["right"]
    return {
        "name": name,
        "base_run": left,
        "sft_run": right,
        **head,
        "metadata": {**head["metadata"], "base_run": left, "sft_run": right, "pair_name": name},
        "swap_options": {"base": _sources(runs[left]), "sft": _sources(runs[right])},
        "layers": read.pair_layers(name, left, right),
    }


def _sources(run: Record) -> Record:
    return {"embedding_source": run["embedding"], "unembedding_source": run["unembedding"]}


def _prompts(finished: FinishedCell) -> Iterator[_Read]:
    """Prompts under their variants, with the rows of all tables that belong to them."""
    topk, tracked = _Following(finished, TOPK_NAME), _Following(finished, TRACKED_NAME)
    scalars = _Following(finished, SCALARS_NAME, [*_KEYS, *_METRICS])
    for place, rows in _places(finished.artefact(PROMPTS_NAME), ["prompt", "variant", "text", "tokens"]):
        (found,) = rows.to_pylist()
        yield _Read(
            *place, found["text"], found["tokens"],
            _scalars(scalars.take(place)), _ranked(topk.take(place)), _tracked(tracked.take(place)),
        )  # fmt: skip
    for table in (scalars, topk, tracked):
        table.require_end()


class _Following:
    """Rows of a table, taken in the order of its prompts; a prompt may have none."""

    def __init__(self, finished: FinishedCell, name: str, columns: list[str] | None = None) -> None:
        path = finished.artefact(name)
        self._path, self._empty = path, pq.read_schema(path).empty_table()
        self._groups = _places(path, columns)
        self._next: tuple[Place, pa.Table] | None = None

    def take(self, place: Place) -> pa.Table:
        self._next = self._next or next(self._groups, None)
        if self._next is None or self._next[0] != place:
            return self._empty
        rows, self._next = self._next[1], None
        return rows

    def require_end(self) -> None:
        if left := self._next or next(self._groups, None):
            prompt, variant = left[0]
            raise IntegrityError(f"{self._path}: prompt {prompt}, variant {variant!r}, is not where it should be")


def _places(path: Path, columns: list[str] | None) -> Iterator[tuple[Place, pa.Table]]:
    """The rows of each prompt under each variant; row groups are read when they are reached."""
    for place, parts in groupby(_parts(path, columns), key=itemgetter(0)):
        yield place, pa.concat_tables(part for _, part in parts)


def _parts(path: Path, columns: list[str] | None) -> Iterator[tuple[Place, pa.Table]]:
    with pq.ParquetFile(path) as file:
        for index in range(file.num_row_groups):
            rows = file.read_row_group(index, columns=columns)
            prompts, variants = rows["prompt"].to_numpy(), rows["variant"].to_numpy()
            changes = (prompts[1:] != prompts[:-1]) | (variants[1:] != variants[:-1])
            starts = [0, *(np.flatnonzero(changes) + 1).tolist(), len(rows)]
            for start, end in pairwise(starts):
                if start < end:
                    yield (int(prompts[start]), str(variants[start])), rows.slice(start, end - start)


def _scalars(rows: pa.Table) -> dict[tuple[str, str, int], dict[int, dict[str, Number]]]:
    found: dict[tuple[str, str, int], dict[int, dict[str, Number]]] = {}
    values = zip(*(_floats(rows[name]) for name in _METRICS), strict=True)
    for (kind, record, layer, position), metrics in zip(_rows(rows, _KEYS[2:]), values, strict=True):
        found.setdefault((kind, record, layer), {})[position] = dict(zip(_METRICS, metrics, strict=True))
    return found


def _ranked(rows: pa.Table) -> dict[tuple[str, str, int, int, str], Record]:
    keys = _rows(rows, (*_KEYS[2:], "direction"))
    lists = zip(_lists(rows["indices"]), _lists(rows["values"]), strict=True)
    return {key: {"indices": ids, "values": values} for key, (ids, values) in zip(keys, lists, strict=True)}


def _tracked(rows: pa.Table) -> dict[tuple[str, int, int], dict[str, float]]:
    found: dict[tuple[str, int, int], dict[str, float]] = {}
    keys = _rows(rows, ("record", "layer", "position", "token_id"))
    for (run, layer, position, token), value in zip(keys, _floats(rows["logit"]), strict=True):
        if value is not None:
            found.setdefault((run, layer, position), {})[str(token)] = value
    return found


def _rows(rows: pa.Table, names: Sequence[str]) -> Iterator[Any]:
    return zip(*(rows[name].to_numpy().tolist() for name in names), strict=True)


def _floats(column: pa.ChunkedArray) -> list[Number]:
    return [None if value != value else value for value in column.to_numpy().tolist()]


def _lists(column: pa.ChunkedArray) -> Iterator[list[Any]]:
    """Lists of numbers, much faster than `to_pylist`."""
    for chunk in column.chunks:
        values, offsets = chunk.values.to_numpy(zero_copy_only=False), chunk.offsets.to_numpy().tolist()
        yield from (values[start:end].tolist() for start, end in pairwise(offsets))
