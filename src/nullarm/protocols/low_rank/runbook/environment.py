"""`meta.json`, `env.txt` and `gpu_query.csv`: what was asked, and of which code and machines."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nullarm.analysis import Analysis
from nullarm.protocols.low_rank.runbook.files import write_data, write_text
from nullarm.protocols.low_rank.sessions import TimingSession
from nullarm.store.study_store import StudyStore

SAMPLED = ("sm_clock_mhz", "memory_clock_mhz", "temperature_c", "power_w", "memory_used_bytes", "throttle")
"""Columns of the run table that a GPU fills."""


def write_environment(store: StudyStore, analysis: Analysis, sessions: Sequence[TimingSession]) -> list[Path]:
    """Write the three files.

    Raises:
        StorageError: The disk is full, read-only or gone.
    """
    output = store.paths.output
    return [
        write_data(output / "meta.json", _meta(store, analysis)),
        write_text(output / "env.txt", "".join(f"{line}\n" for line in _environment(store))),
        write_text(output / "gpu_query.csv", _gpu_query(sessions)),
    ]


def _meta(store: StudyStore, analysis: Analysis) -> dict[str, Any]:
    study = store.lock.study
    settings = dict(study.parameters)
    compression = settings.pop("compression")
    return {
        "study": study.name,
        "question": study.question,
        "protocol": study.protocol,
        "smoke": study.smoke,
        "exploratory": analysis.exploratory,
        "plan_hash": store.plan.hash,
        "analysis_hash": analysis.analysis_hash,
        "content_ids": dict(next(iter(store.plan)).inputs),
        "seeds": list(study.seeds),
        "arms": {name: {**arm.model_dump(mode="json"), **compression[name]} for name, arm in study.arms.items()},
        "settings": settings,
    }


def _environment(store: StudyStore) -> Iterator[str]:
    """One line a fact; where cells differ, each value with how many cells had it."""
    records = [finished.record for cell in store.plan if (finished := store.finished(cell.id))]
    yield f"# {len(records)} finished cells"
    seen: dict[str, Counter[str]] = {}
    for record in records:
        for name, value in _facts(record.provenance):
            seen.setdefault(name, Counter())[value] += 1
    for name, values in seen.items():
        told = [f"{value} ({n} cells)" if len(values) > 1 else value for value, n in values.most_common()]
        yield f"{name}: {'; '.join(told)}"


def _facts(found: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in found.items():
        if isinstance(value, Mapping):
            yield from _facts(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)


def _gpu_query(sessions: Sequence[TimingSession]) -> str:
    """What was seen of the GPU in each timed run; the header alone where there is none."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["session", "run", "started_s", *SAMPLED])
    for session in sessions:
        for run in session.runs:
            sample = [getattr(run, name) for name in SAMPLED]
            if any(value is not None for value in sample):
                writer.writerow([session.name, run.run, run.started_s, *sample])
    return text.getvalue()
