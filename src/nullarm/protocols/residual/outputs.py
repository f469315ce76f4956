"""Files under the names of the source's runbook, and the block that a run ends with."""

from __future__ import annotations

from pathlib import Path
from textwrap import shorten
from typing import Any

from nullarm.analysis import Analysis
from nullarm.errors import InvalidResult
from nullarm.protocols.findings import verdict_line
from nullarm.protocols.residual.export.manifest import write_manifest
from nullarm.protocols.residual.export.write import announcement, write_json
from nullarm.protocols.residual.planning import CAPTURE
from nullarm.protocols.residual.report.hotspots import layer_shares
from nullarm.store.cell import read_failure
from nullarm.store.files import read_json, sha256_path
from nullarm.store.files import write_json as write_small_json
from nullarm.store.record import FinishedCell
from nullarm.store.study_store import StudyStore
from nullarm.study.plan import Cell

TOLD = ("js", "js_final", "relative_diff")
"""Means over prompts that the closing block has of each capture."""
EXPORTS = "exports.json"
"""In the output directory: what each JSON file was made of, so that it is made once, and again when it is damaged."""


def write_cell(store: StudyStore, cell: Cell) -> None:
    """The JSON of a capture that has just ended, and the manifest as it is now."""
    if cell.stage == CAPTURE and (finished := store.finished(cell.id)):
        _export(store, cell, finished)
        write_manifest(store, _files(store))


def write_outputs(store: StudyStore, analysis: Analysis) -> str:
    """All JSON files, the manifest, and the closing block."""
    lines, left = ["RESIDUAL COMPARISON"], []
    for cell in store.plan:
        if cell.stage != CAPTURE:
            continue
        if finished := store.finished(cell.id):
            lines += _told(cell, finished, _export(store, cell, finished))
        elif failure := read_failure(store.paths.cell(cell.id)):
            lines.append(f"{cell.label}: FAILED ({shorten(str(failure), 160, placeholder=' …')})")
        else:
            left.append(cell.label)
    lines += [f"not captured yet: {', '.join(left)}"] if left else []
    manifest = write_manifest(store, _files(store))
    return "\n".join([*lines, f"manifest: {manifest}", "", "VERDICTS", *_verdicts(analysis)])


def _export(store: StudyStore, cell: Cell, finished: FinishedCell) -> str:
    """Write the JSON of a capture unless it is there and whole; the line for the log."""
    if not cell.settings["json_export"]:
        return "no JSON was asked for (json_export: false); the tables are in the cell's artefacts"
    index = store.paths.output / EXPORTS
    known: dict[str, Any] = read_json(index) if index.exists() else {}
    record = finished.record.to_json()["sha256"]
    old = known.get(cell.id)
    if old and old["record"] == record and _whole(store, old):
        return announcement(store.paths.root / old["file"])
    try:
        path = write_json(finished, store.paths.output / _directory(cell))[0]
    except InvalidResult as error:
        return f"no JSON: {error}"
    entry = {"record": record, "file": path.relative_to(store.paths.root).as_posix(), "sha256": sha256_path(path)}
    write_small_json(index, {**known, cell.id: entry})
    line = announcement(path)
    with open(finished.paths.log, "a", encoding="utf-8") as log:
        print(line, file=log)
    return line


def _files(store: StudyStore) -> dict[str, Path]:
    """The JSON file of each capture that has one."""
    index = store.paths.output / EXPORTS
    known: dict[str, Any] = read_json(index) if index.exists() else {}
    return {cell_id: path for cell_id, entry in known.items() if (path := store.paths.root / entry["file"]).exists()}


def _whole(store: StudyStore, entry: dict[str, str]) -> bool:
    path = store.paths.root / entry["file"]
    return path.exists() and sha256_path(path) == entry["sha256"]


def _directory(cell: Cell) -> str:
    """One directory per entry; cells of one entry that differ in seed or replicate get their own."""
    parts = [str(cell.arm), f"seed-{cell.seed}", f"replicate-{cell.replicate}" if cell.replicate else ""]
    return "/".join(part for part in parts if part)


def _told(cell: Cell, finished: FinishedCell, line: str) -> list[str]:
    metrics = finished.record.metrics
    said = [f"{name} {value:.4g}" for name in TOLD if (value := metrics.get(name)) is not None]
    shares = sorted(layer_shares(finished).items(), key=lambda item: -item[1])
    changed = ", ".join(f"{'embedding' if n < 0 else f'layer {n}'} {share:.0%}" for n, share in shares[:3] if share > 0)
    return [
        f"{cell.label}: {', '.join(said) or 'nothing comparable'}",
        *([f"  changed by itself: {changed}"] if changed else []),
        *([f"  INVALID: {finished.record.reason}"] if finished.record.outcome != "ok" else []),
        f"  {line}",
    ]


def _verdicts(analysis: Analysis) -> list[str]:
    """One line for each contrast, and one for all that have no data yet."""
    empty = [f.judgement.name for f in analysis.findings if f.judgement.verdict == "INSUFFICIENT_DATA"]
    told = [verdict_line(f) for f in analysis.findings if f.judgement.name not in empty]
    return told + ([f"INSUFFICIENT_DATA: {', '.join(empty)}"] if empty else [])
