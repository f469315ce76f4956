"""Killed in mid-capture and resumed, a capture hands on the same tables."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import psutil
import yaml
from kill9 import Campaign, artefact_faults, faults_of, workers_of

from nullarm.store.study_store import StudyStore
from support.pairs import captured, residual_study, save_model, scale_block
from support.processes import PATIENCE_S, eventually

BATCHES = 120
"""Of a capture; a shard is four chunks. Many, so that the kill comes before the end on a quick machine too."""


def test_killed_in_mid_capture_and_resumed_the_tables_are_identical(tmp_path: Path) -> None:
    prompts = [f"What is {n} + {n + 1}? Answer: {2 * n + 1}." for n in range(BATCHES)]
    base, sft = save_model(tmp_path / "base"), save_model(tmp_path / "sft", scale_block(1))
    study = residual_study(base, sft, prompts=prompts, batch_tokens=1, multi_pass={"enabled": True})
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(study.model_dump(mode="json")))
    campaign = Campaign(str(file), tmp_path, at_once=1)
    undisturbed = campaign.undisturbed()
    root = tmp_path / "killed"
    for shards in (1, 20, 40):
        with campaign.start(root) as process:
            workers = eventually(partial(living_workers, root), "a worker")
            eventually(partial(reached, root, shards), f"shard {shards}")
            for worker in workers:
                worker.kill()
            process.kill()
            psutil.wait_procs(workers, timeout=PATIENCE_S)  # so that the next round does not take them for its own
    assert chunks(root) < 4 * BATCHES + 2, "not in mid-capture"
    with campaign.start(root) as process:
        assert process.wait() == 0
    assert faults_of(root, undisturbed) == []
    with StudyStore.open(root) as store:
        first = store.finished(store.plan.cells[0].id)
        assert first is not None
        assert first.record.attempt == 4


def test_an_artefact_that_differs_is_found(tmp_path: Path) -> None:
    base = save_model(tmp_path / "base")
    for name, k in (("one", 2), ("two", 3)):
        captured(tmp_path / name, residual_study(base, base, top_k=k, prompts=["a b"]))
    assert artefact_faults(tmp_path / "one", tmp_path / "one") == []
    assert any("topk differs" in fault for fault in artefact_faults(tmp_path / "one", tmp_path / "two"))


def chunks(root: Path) -> int:
    """Chunks on disk; one capture runs at a time."""
    return len(list(root.glob("cells/*/chunks/[!.]*")))


def living_workers(root: Path) -> list[psutil.Process] | None:
    """Workers of the study directory, or None while there are none: looked up before the kill, which must be quick."""
    return list(workers_of(root)) or None


def reached(root: Path, shards: int) -> bool:
    """Whether a capture is half way through the shard after so many; its two notes are chunks as well."""
    return chunks(root) >= 4 * shards + 4
