"""How long the spine takes: planning and status over 10,000 cells, claims, and what the local engine adds to a cell.

    python benchmarks/store.py [--cells 10000] [--noop-cells 200] [--dir DIR] [--json FILE]

The overhead of a cell is measured on rehearsal cells that score one item in one chunk, run one at a time in one warm
worker. A first run of three cells carries the start of the worker process and its imports; it is subtracted:
`(wall of n cells − wall of 3 cells) / (n − 3)`. What is left is claim, submission, chunk, artefact, record, heartbeat,
index and progress, `fsync` included. The time of a bare `fsync` on the same disk is printed beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeVar
from unittest import mock

from nullarm.conduct import prepare, run
from nullarm.engines.local import LocalEngine
from nullarm.store.cell import CellWriter
from nullarm.store.lease import Leases
from nullarm.store.study_store import StudyStore
from nullarm.study.spec import Study

ResultT = TypeVar("ResultT")
SYNCED_CLAIMS = 1000
"""Claims that are made durable one by one; with 10,000 a slow disk alone would be measured for minutes."""
Row = tuple[str, float, str, float | None]
"""What was measured, the figure, its unit, and the most it may be."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=10_000)
    parser.add_argument("--noop-cells", type=int, default=200)
    parser.add_argument("--dir", type=Path, help="where the study directories are made; the disk to measure")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="nullarm-bench-", dir=options.dir) as name:
        root = Path(name)
        rows = [*_index_rows(root / "index", options.cells), *_overhead_rows(root, options.noop_cells)]
    _print(rows)
    if options.json:
        figures = [{"what": w, "value": v, "unit": u, "limit": limit} for w, v, u, limit in rows]
        machine = {"python": platform.python_version(), "system": platform.platform(), "cpus": os.cpu_count()}
        options.json.write_text(json.dumps({"machine": machine, "figures": figures}, indent=1) + "\n")


def _index_rows(root: Path, cells: int) -> Iterator[Row]:
    study = _study(cells)
    prepared, plan_s = _timed(lambda: prepare(study))
    yield f"plan, {len(prepared.plan)} cells", plan_s, "s", 5.0
    store, lay_down_s = _timed(lambda: StudyStore.create(root, study, prepared.plan))
    yield "lay down the study directory", lay_down_s, "s", None
    leases, claimed = Leases(), store.plan.cells[:SYNCED_CLAIMS]
    _, claim_s = _timed(lambda: [store.claim(cell, leases) for cell in claimed])
    yield f"claim, {len(claimed)} cells, each", claim_s / len(claimed) * 1e3, "ms", None
    with _without_fsync():
        _, rest_s = _timed(lambda: [store.claim(cell, leases) for cell in store.plan.cells[SYNCED_CLAIMS:]])
        yield (
            "claim of the other cells without fsync, each",
            rest_s / max(1, len(store.plan) - SYNCED_CLAIMS) * 1e3,
            "ms",
            None,
        )
        for cell in store.plan:
            CellWriter(store.paths.cell(cell.id), 1).commit({"score": 1.0})
        leases.release_all()
    _, first_s = _timed(store.reconcile)
    yield "note that all cells have ended", first_s, "s", None
    store.close()
    _, open_s = _timed(lambda: StudyStore.open(root).close())
    yield "open, all cells done", open_s, "s", 1.0
    command = [sys.executable, "-m", "nullarm", "status", str(root), "--json"]
    _, status_s = _timed(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL))
    yield "nullarm status --json, process start included", status_s, "s", 1.0
    store.paths.journal.unlink()
    _, rebuild_s = _timed(lambda: StudyStore.open(root).close())
    yield "open after the index was deleted", rebuild_s, "s", None


def _overhead_rows(root: Path, cells: int) -> Iterator[Row]:
    few_s = _run_noop(root / "few", 3)
    many_s = _run_noop(root / "many", cells)
    yield "start of one worker and 3 no-op cells", few_s, "s", None
    yield f"overhead per no-op cell, {cells} cells", (many_s - few_s) / (cells - 3) * 1e3, "ms", 100.0
    probe = root / "fsync"
    with open(probe, "wb") as file:
        _, fsync_s = _timed(lambda: _synced_writes(file, 100))
    yield "one fsync on this disk", fsync_s / 100 * 1e3, "ms", None


def _run_noop(root: Path, cells: int) -> float:
    """Wall seconds of a rehearsal with `cells` cells that do nothing."""
    study = _study(cells)
    store = StudyStore.create(root, study, prepare(study).plan)
    _, seconds = _timed(lambda: run(store, LocalEngine(at_once=1)))
    if any(store.finished(cell.id) is None for cell in store.plan):
        raise SystemExit("a no-op cell did not finish")
    store.close()
    shutil.rmtree(root)
    return seconds


def _synced_writes(file: BinaryIO, count: int) -> None:
    for _ in range(count):
        file.write(b"x")
        file.flush()
        os.fsync(file.fileno())


def _study(cells: int) -> Study:
    """A rehearsal of about `cells` cells: per seed one that prepares, one treated, and shams."""
    per_seed = max(3, min(cells, 100))
    sham = {"role": "control", "null": "nothing changes", "replicates": per_seed - 2}
    contrast = {"name": "effect", "treatment": "treated", "control": "sham", "primary": True}
    return Study.model_validate(
        {
            "name": "benchmark",
            "question": "How long does the spine take?",
            "protocol": "rehearsal",
            "parameters": {"items": 1, "chunks": 1},
            "factors": {"arm": {"treated": {}, "sham": sham}},
            "seeds": list(range(max(1, cells // per_seed))),
            "analysis": {"metric": "score", "margin": 0.1, "contrasts": [contrast]},
            "smoke": True,
        }
    )


def _timed(work: Callable[[], ResultT]) -> tuple[ResultT, float]:
    started = time.perf_counter()
    result = work()
    return result, time.perf_counter() - started


@contextmanager
def _without_fsync() -> Iterator[None]:
    """Building the scenery need not survive a power cut."""
    with mock.patch("os.fsync"):
        yield


def _print(rows: list[Row]) -> None:
    width = max(len(what) for what, *_ in rows)
    for what, value, unit, limit in rows:
        bound = "" if limit is None else f"   (at most {limit:g} {unit})"
        print(f"{what:<{width}}  {value:9.3f} {unit}{bound}")


if __name__ == "__main__":
    main()
