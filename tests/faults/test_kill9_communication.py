"""Killed while it trains and in mid-chunk of an evaluation, a communication study has every item exactly once."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path

import psutil
import yaml
from kill9 import Campaign, faults_of, workers_of

from nullarm.protocols.kv_communication.tables import ITEMS
from nullarm.store.study_store import StudyStore
from nullarm.training.checkpoint import step_of
from support.processes import PATIENCE_S, eventually

ITEMS_ASKED, CHUNK = 240, 2
STUDY = {
    "format": 1,
    "name": "killed",
    "question": "does it survive?",
    "protocol": "kv_communication",
    "seeds": [0],
    "factors": {"channel": {"alone": {"role": "reference"}, "c2c": {}}},
    "parameters": {
        "receiver": "builtin:world",
        "sharers": {"chat": "builtin:world-chat"},
        "fusers": {
            "main": {
                "sharer": "chat",
                "shape": {"hidden_dim": 8, "intermediate_dim": 8},
                "training": {"steps": 120, "batch_size": 16, "learning_rate": 1e-3, "checkpoint_every": 5},
            }
        },
        "channels": {"alone": {"via": "receiver"}, "c2c": {"proportion": 0.5, "order": "random"}},
        "tasks": [{"kind": "world_relations", "test_items": ITEMS_ASKED}],
        "calibration_items": 3,
        "chunk_size": CHUNK,
    },
    "analysis": {
        "metric": "accuracy",
        "margin": 0.05,
        "contrasts": [
            {"name": "main", "treatment": "c2c", "control": "alone", "test": "paired_items", "primary": True}
        ],
    },
}


def test_killed_while_training_and_in_mid_chunk_every_item_is_there_once(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(STUDY))
    campaign = Campaign(str(file), tmp_path, at_once=1)
    undisturbed = campaign.undisturbed()
    root = tmp_path / "killed"
    for moment in (partial(checkpoints, root, 3), partial(chunks, root, 10), partial(chunks, root, 150)):
        with campaign.start(root) as process:
            workers = eventually(partial(living_workers, root), "a worker")
            eventually(moment, "the moment")
            for worker in workers:
                worker.kill()
            process.kill()
            psutil.wait_procs(workers, timeout=PATIENCE_S)
    assert not chunks(root, 2 * ITEMS_ASKED // CHUNK), "not in mid-evaluation"
    with campaign.start(root) as process:
        assert process.wait() == 0
    assert faults_of(root, undisturbed) == []
    with StudyStore.open(root) as store:
        evaluated = [found for cell in store.plan if cell.arm and (found := store.finished(cell.id))]
    for found in evaluated:
        assert set(Counter(found.table(ITEMS)["item"].to_pylist()).values()) == {1}
        assert len(found.table(ITEMS)) == ITEMS_ASKED
    assert sum(found.record.attempt for found in evaluated) > len(evaluated)


def living_workers(root: Path) -> list[psutil.Process] | None:
    """Workers of the study directory, or None while there are none: looked up before the kill, which must be quick."""
    return list(workers_of(root)) or None


def checkpoints(root: Path, number: int) -> bool:
    """Whether the fuser has been trained so far that a checkpoint of this number is, or was, there."""
    return max((step_of(path.name) for path in root.glob("cells/*/scratch/checkpoints/*")), default=0) >= 5 * number


def chunks(root: Path, number: int) -> bool:
    """Whether so many slices of items are committed, over all cells."""
    return len(list(root.glob("cells/*/chunks/items-*"))) >= number
