"""Final tables over all finished cells of the plan, and the manifest: byte-identical however the run was disturbed."""

from __future__ import annotations

import csv
import io

import pyarrow as pa

from nullarm.store.atomic import make_directory, write_bytes
from nullarm.store.files import encode_table
from nullarm.store.record import FinishedCell
from nullarm.store.study_store import StudyStore
from nullarm.study.plan import Cell

ITEMS = "items"
"""Name of the artefact with a cell's per-item measurements: `item`, optional `cluster`, one column per measurement."""

BLOCKS = "blocks"
"""Name of the artefact with the blocks of a timing session, whose cell's slice names the contrast it was held for:
`item` string; `treatment`, `control` float64, the arm's mean over the block's runs of the logarithm of tokens a second.
"""

_KEYS = ("cell", "stage", "arm", "replicate", "seed", "slice")


def export_tables(store: StudyStore) -> None:
    """Write `tables/cells.parquet`, `tables/items.parquet` and `manifest.csv`.

    Timings and machines are left to the records: the tables hold what was found, in plan order, and nothing else.
    """
    make_directory(store.paths.tables)
    pairs = [(cell, store.finished(cell.id)) for cell in store.plan]
    done = [(cell, finished) for cell, finished in pairs if finished is not None]
    write_bytes(store.paths.tables / "cells.parquet", encode_table(_cells(done)))
    items_file = store.paths.tables / "items.parquet"
    if items := [_items(cell, finished) for cell, finished in done if ITEMS in finished.record.artefacts]:
        table = pa.concat_tables(items, promote_options="default")
        write_bytes(items_file, encode_table(table))
    else:
        items_file.unlink(missing_ok=True)
    write_bytes(store.paths.manifest, _manifest(pairs))


def _keys(cell: Cell) -> tuple[str | int | None, ...]:
    return (cell.id, cell.stage, cell.arm, cell.replicate, cell.seed, cell.slice)


def _cells(done: list[tuple[Cell, FinishedCell]]) -> pa.Table:
    """One row per cell and metric; a cell without metrics has one row with a null metric."""
    rows: list[tuple[object, ...]] = []
    for cell, finished in done:
        record = finished.record
        metrics: list[tuple[str | None, float | None]] = [*sorted(record.metrics.items())] or [(None, None)]
        rows += [(*_keys(cell), record.outcome, name, None if v is None else float(v)) for name, v in metrics]
    types = [pa.string()] * 3 + [pa.int64()] * 2 + [pa.string()] * 3 + [pa.float64()]
    names = [*_KEYS, "outcome", "metric", "value"]
    columns = [[row[i] for row in rows] for i in range(len(names))]
    return pa.table([pa.array(c, t) for c, t in zip(columns, types, strict=True)], names=names)


def _items(cell: Cell, finished: FinishedCell) -> pa.Table:
    table = finished.table(ITEMS)
    types = (pa.string(), pa.string(), pa.string(), pa.int64(), pa.int64(), pa.string())
    keys = [pa.array([value] * len(table), kind) for value, kind in zip(_keys(cell), types, strict=True)]
    return pa.table([*keys, *table.columns], names=[*_KEYS, *table.column_names])


def _manifest(pairs: list[tuple[Cell, FinishedCell | None]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerow([*_KEYS, "status", "reason", "attempt", "seconds", "record_sha256", "artefacts"])
    for cell, finished in pairs:
        keys = ["" if key is None else key for key in _keys(cell)]
        if finished is None:
            writer.writerow([*keys, "open", "", "", "", "", ""])
            continue
        record = finished.record
        files = " ".join(f"{a.file}:{a.sha256}" for a in record.artefacts.values())
        digest = record.to_json()["sha256"]
        writer.writerow(
            [*keys, record.outcome, record.reason or "", record.attempt, f"{record.seconds:.3f}", digest, files]
        )
    return text.getvalue().encode()
