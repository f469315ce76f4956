"""Summaries of residual comparisons as text for a terminal, and as a CSV, JSON or Parquet file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from nullarm.errors import UsageError
from nullarm.protocols.residual.export.summary import COLUMNS, Row, Summary
from nullarm.report.blocks import Table
from nullarm.report.numbers import show, show_column
from nullarm.report.tables import csv_text
from nullarm.report.text import visible
from nullarm.store.atomic import write_bytes
from nullarm.store.files import encode_json, encode_table

_RIGHT = ("layer", "position", "count", "mean", "max", "value", "prompt")


def rows_of(summaries: Iterable[Summary]) -> list[Row]:
    """All rows of all summaries, with the columns `COLUMNS`."""
    return [row for summary in summaries for row in summary.rows()]


def text_of(summaries: Iterable[Summary]) -> str:
    """Every summary as a heading and two small tables, along the axis and of hotspots."""
    return "\n\n".join("\n".join(_summary_lines(summary)) for summary in summaries)


def export(summaries: Iterable[Summary], path: Path) -> None:
    """Write all rows, as the suffix of `path` says.

    Raises:
        UsageError: The suffix is of no known form.
        StorageError: The disk is full, read-only or gone.
    """
    write_bytes(path, encoder(path)(rows_of(summaries)))


def encoder(path: Path) -> Callable[[list[Row]], bytes]:
    """What makes the bytes of an export, by the suffix of its path.

    Raises:
        UsageError: The suffix is of no known form.
    """
    encoders = {".csv": _csv, ".json": encode_json, ".parquet": _parquet}
    if path.suffix not in encoders:
        raise UsageError(f"cannot export to {path}: the suffix says no form", value=path.suffix, valid=encoders)
    return encoders[path.suffix]


def _csv(rows: list[Row]) -> bytes:
    return csv_text(Table("", COLUMNS, tuple(tuple(row[name] for name in COLUMNS) for row in rows))).encode()


def _parquet(rows: list[Row]) -> bytes:
    import pyarrow as pa

    types = {"layer": pa.int32(), "position": pa.int32(), "prompt": pa.int32(), "count": pa.int64()}
    types |= dict.fromkeys(("mean", "max", "value"), pa.float64())
    return encode_table(pa.Table.from_pylist(rows, pa.schema([(n, types.get(n, pa.string())) for n in COLUMNS])))


def _summary_lines(summary: Summary) -> Iterator[str]:
    yield visible(f"{summary.input} · {summary.variant} · {summary.record} · {summary.metric}")
    rows = list(summary.rows())
    lines = [row for row in rows if row["kind"] == "summary"]
    shared = any(row["token"] is not None for row in lines)  # else prompts differ in what stands anywhere
    along = ("layer",) if summary.axis == "layer" else ("position", "token") if shared else ("position",)
    yield from _table(lines, (*along, "count", "mean", "max"))
    hotspots = [row for row in rows if row["kind"] == "hotspot"]
    if hotspots:
        yield "  hotspots"
        yield from _table(hotspots, ("layer", "position", "token", "value", "prompt"))


def _table(rows: Sequence[Row], names: Sequence[str]) -> Iterator[str]:
    columns = [[name, *_shown(name, [row[name] for row in rows])] for name in names]
    widths = [max(map(len, column)) for column in columns]
    for line in zip(*columns, strict=True):
        cells = zip(names, line, widths, strict=True)
        yield "  " + "  ".join(f"{c:>{w}}" if n in _RIGHT else f"{c:<{w}}" for n, c, w in cells).rstrip()


def _shown(name: str, values: list[Any]) -> list[str]:
    if name == "token":  # quoted, so that a space or a newline can be seen and no line breaks
        return ["—" if v is None else visible(json.dumps(v, ensure_ascii=False)) for v in values]
    return show_column(values) if name in ("mean", "max", "value") else [show(value) for value in values]
