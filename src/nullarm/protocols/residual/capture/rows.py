"""From the numbers of one batch to rows of the tables, in their order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from nullarm.errors import InvalidResult
from nullarm.protocols.residual.tables import (
    FACTORIAL_METRICS,
    METRICS,
    PAIR_METRICS,
    RUN_METRICS,
    SCALARS,
    TOPK,
    TRACKED,
)

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Present = npt.NDArray[np.bool_]

KINDS: Mapping[str, Mapping[str, str]] = {"run": RUN_METRICS, "pair": PAIR_METRICS, "factorial": FACTORIAL_METRICS}


@dataclass(frozen=True)
class Measured:
    """One metric of one record.

    Attributes:
        values: [layers + 1, positions], layer −1 first; of no meaning where `present` is False.
        present: [layers + 1, positions] whether it could be measured.
    """

    values: Floats
    present: Present


@dataclass(frozen=True)
class Ranked:
    """Token ids and values of one record and direction, both [layers, positions, k], from layer 0."""

    ids: Ints
    values: Floats


@dataclass(frozen=True)
class Extent:
    """One prompt's part of the positions axis.

    Attributes:
        prompt: Index of the prompt.
        variant: Its variant.
        positions: [n] positions that were compared.
    """

    prompt: int
    variant: str
    positions: Ints


@dataclass(frozen=True)
class BatchNumbers:
    """Everything measured on one batch, on the host.

    Attributes:
        extents: The prompts, in order along the positions axis.
        scalars: (kind, record) to metric to values.
        ranked: (kind, record) to direction to top-k lists.
        tracked: Run to [layers, positions, tokens] logits, from layer 0.
        tracked_ids: [tokens] ids.
    """

    extents: Sequence[Extent]
    scalars: Mapping[tuple[str, str], Mapping[str, Measured]]
    ranked: Mapping[tuple[str, str], Mapping[str, Ranked]]
    tracked: Mapping[str, Floats]
    tracked_ids: Ints


def scalars_table(numbers: BatchNumbers) -> pa.Table:
    """Rows of `scalars`.

    Raises:
        InvalidResult: A number that was measured is NaN or infinite.
    """
    for (_, record), metrics in numbers.scalars.items():
        for name, measured in metrics.items():
            _require_finite(name, record, measured)
    keys = list(numbers.scalars)
    layers = next(iter(next(iter(numbers.scalars.values())).values())).values.shape[0]
    columns = _keys(numbers.extents, keys, np.arange(-1, layers - 1))
    cuts = _cuts(numbers.extents)
    for name in METRICS:
        blocks = [numbers.scalars[key].get(name) for key in keys]
        columns[name] = _column(blocks, layers, cuts)
    return pa.table(columns, schema=SCALARS)


def topk_table(numbers: BatchNumbers) -> pa.Table:
    """Rows of `topk`: per position one for each direction of the record."""
    parts = []
    for extent, cut in zip(numbers.extents, _cuts(numbers.extents), strict=True):
        for (kind, record), directions in numbers.ranked.items():
            parts.append(_ranked_rows(extent, kind, record, directions, cut))
    return pa.concat_tables(parts) if parts else TOPK.empty_table()


def tracked_table(numbers: BatchNumbers) -> pa.Table:
    """Rows of `tracked`."""
    tokens = len(numbers.tracked_ids)
    keys = [("run", name) for name in numbers.tracked]
    if not tokens or not keys:
        return TRACKED.empty_table()
    layers = next(iter(numbers.tracked.values())).shape[0]
    columns = _keys(numbers.extents, keys, np.arange(layers), repeats=tokens)
    logits = [np.stack([numbers.tracked[n][:, cut] for _, n in keys]).reshape(-1) for cut in _cuts(numbers.extents)]
    columns["logit"] = pa.array(np.concatenate(logits))
    columns["token_id"] = pa.array(np.tile(numbers.tracked_ids, len(columns["logit"]) // tokens), pa.int32())
    return pa.table(columns, schema=TRACKED)


def _require_finite(name: str, record: str, measured: Measured) -> None:
    broken = measured.present & ~np.isfinite(measured.values)
    if broken.any():
        layer, position = (int(axis) for axis in np.argwhere(broken)[0])
        raise InvalidResult(
            f"{name} of {record} is not finite at layer {layer - 1}, position {position} of the batch",
            value=float(measured.values[layer, position]),
            next_command="try dtype: float32; a model in half precision may overflow",
        )


def _cuts(extents: Sequence[Extent]) -> list[slice]:
    ends = np.cumsum([len(extent.positions) for extent in extents]).tolist()
    return [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def _keys(
    extents: Sequence[Extent], records: Sequence[tuple[str, str]], layers: npt.NDArray[np.int_], repeats: int = 1
) -> dict[str, pa.Array]:
    """The key columns: prompt, then record, layer, position, and `repeats` rows for each."""
    counts = [len(records) * len(layers) * len(extent.positions) * repeats for extent in extents]
    kinds, names = [k for k, _ in records], [n for _, n in records]
    per_record = [counts[i] // len(records) for i in range(len(extents))]
    return {
        "prompt": pa.array(np.repeat([e.prompt for e in extents], counts), pa.int32()),
        "variant": _repeated([e.variant for e in extents], counts),
        "kind": pa.concat_arrays([_repeated(kinds, [n] * len(kinds)) for n in per_record]),
        "record": pa.concat_arrays([_repeated(names, [n] * len(names)) for n in per_record]),
        "layer": pa.array(
            np.concatenate([np.tile(np.repeat(layers, len(e.positions) * repeats), len(records)) for e in extents]),
            pa.int16(),
        ),
        "position": pa.array(
            np.concatenate([np.tile(np.repeat(e.positions, repeats), len(records) * len(layers)) for e in extents]),
            pa.int32(),
        ),
    }


def _repeated(names: Sequence[str], counts: Sequence[int]) -> pa.Array:
    indices = pa.array(np.repeat(np.arange(len(names), dtype=np.int32), counts))
    return pa.DictionaryArray.from_arrays(indices, pa.array(names, pa.string())).cast(pa.string())


def _column(blocks: Sequence[Measured | None], layers: int, cuts: Sequence[slice]) -> pa.Array:
    """One metric of all records, prompt by prompt; null where a record has none."""
    values, absent = [], []
    for cut in cuts:
        for block in blocks:
            size = layers * (cut.stop - cut.start)
            values.append(np.zeros(size, np.float32) if block is None else block.values[:, cut].reshape(-1))
            absent.append(np.ones(size, np.bool_) if block is None else ~block.present[:, cut].reshape(-1))
    return pa.array(np.concatenate(values), pa.float32(), mask=np.concatenate(absent))


def _ranked_rows(extent: Extent, kind: str, record: str, directions: Mapping[str, Ranked], cut: slice) -> pa.Table:
    ids = np.stack([ranked.ids[:, cut] for ranked in directions.values()], axis=2)  # [layers, positions, directions, k]
    values = np.stack([ranked.values[:, cut] for ranked in directions.values()], axis=2)
    layers, positions, count, k = ids.shape
    columns = _keys([extent], [(kind, record)], np.arange(layers), repeats=count)
    columns["direction"] = _repeated(list(directions) * (layers * positions), [1] * (layers * positions * count))
    offsets = np.arange(0, ids.size + 1, k, dtype=np.int32)
    columns["indices"] = pa.ListArray.from_arrays(offsets, pa.array(ids.reshape(-1), pa.int32()))
    columns["values"] = pa.ListArray.from_arrays(offsets, pa.array(values.reshape(-1), pa.float32()))
    return pa.table(columns, schema=TOPK)
