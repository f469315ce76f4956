"""Killed between layers and between windows, a study of low-rank compression ends with the tables of peace."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import psutil
import yaml
from kill9 import Campaign, faults_of, workers_of

from nullarm.store.study_store import StudyStore
from support.processes import PATIENCE_S, eventually

GRC = {"method": {"kind": "grc"}, "slots": ["q", "k", "v"], "budget": {"keep": 0.5}}
STUDY = {
    "format": 1,
    "name": "killed",
    "question": "does it survive?",
    "protocol": "low_rank",
    "seeds": [0],
    "factors": {"compression": {"baseline": {"role": "reference"}, "compress": {}, "online": {}}},
    "parameters": {
        "model": "builtin:world",
        "text": {"kind": "world", "train_documents": 320, "test_documents": 100, "document_length": 8},
        "compression": {
            "baseline": {},
            "compress": {**GRC, "allocation": {"kind": "water_filling"}},
            "online": {**GRC, "online": {"blocks": 4}},
        },
        "calibration_tokens": 65_536,
        "window": 64,
        "stride": 8,
        "batch_size": 32,
        "layers_at_once": 1,
    },
    "analysis": {
        "metric": "log_likelihood",
        "margin": 0.02,
        "contrasts": [
            {"name": "cost", "treatment": "compress", "control": "baseline", "kind": "difference",
             "test": "paired_items", "primary": True}
        ],
    },
}  # fmt: skip


def test_killed_between_layers_and_windows_a_study_ends_as_in_peace(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(STUDY))
    campaign = Campaign(str(file), tmp_path, at_once=1)
    undisturbed = campaign.undisturbed()
    root = tmp_path / "killed"
    moments = (("windows", 2), ("factors", 1), ("rows", 4))
    for kind, number in moments:
        with campaign.start(root) as process:
            workers = eventually(partial(living_workers, root), "a worker")
            eventually(partial(chunks, root, kind, number), f"{number} chunks of {kind}")
            for worker in workers:
                worker.kill()
            process.kill()
            psutil.wait_procs(workers, timeout=PATIENCE_S)
    with campaign.start(root) as process:
        assert process.wait() == 0
    assert faults_of(root, undisturbed) == []
    with StudyStore.open(root) as store:
        records = [found.record for cell in store.plan if (found := store.finished(cell.id))]
    assert sum(record.attempt for record in records) > len(records)


def living_workers(root: Path) -> list[psutil.Process] | None:
    """Workers of the study directory, or None while there are none: looked up before the kill, which must be quick."""
    return list(workers_of(root)) or None


def chunks(root: Path, kind: str, number: int) -> bool:
    """Whether so many chunks of a kind are committed, over all cells."""
    places = ("chunks", "scratch")
    return sum(len(list(root.glob(f"cells/*/{place}/{kind}-*"))) for place in places) >= number
