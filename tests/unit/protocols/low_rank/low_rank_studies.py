"""A small study of low-rank compression on the built-in small world, as plain data, and its stages run for real."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nullarm.engines.inline import InlineEngine
from nullarm.protocols.low_rank.protocol import LowRank
from nullarm.protocols.low_rank.tables import TREATMENT
from nullarm.runner import Runner
from nullarm.store.record import FinishedCell
from nullarm.store.study_store import StudyStore
from nullarm.study.load import merged
from nullarm.study.plan import Cell
from nullarm.study.spec import Study
from nullarm.study.validate import validated

QKV = ["q", "k", "v"]
COMPRESS: dict[str, Any] = {"method": {"kind": "grc"}, "slots": QKV, "budget": {"keep": 0.5}}
SPECULATE: dict[str, Any] = {
    "speculation": {"drafter": "compress", "tokens": 3, "prompts": 3, "prompt_tokens": 8, "new_tokens": 9}
}
BENCH: dict[str, Any] = {
    "blocks": 5, "again_blocks": 2, "slowed_blocks": 2, "tokens": 2, "prompt": "the",
    "retries": 0, "warmup_max_runs": 1,
}  # fmt: skip

STUDY: dict[str, Any] = {
    "format": 1,
    "name": "small",
    "question": "does it run?",
    "protocol": "low_rank",
    "seeds": [0],
    "factors": {"compression": {"baseline": {"role": "reference"}, "compress": {}}},
    "parameters": {
        "model": "builtin:world",
        "text": {"kind": "world", "train_documents": 40, "test_documents": 6, "document_length": 4},
        "compression": {"baseline": {}, "compress": COMPRESS},
        "calibration_tokens": 1024,
        "window": 32,
        "layers_at_once": 1,
        "bench": BENCH,
    },
    "analysis": {
        "metric": "log_likelihood",
        "margin": 0.02,
        "resamples": 200,
        "contrasts": [
            {"name": "cost", "treatment": "compress", "control": "baseline", "kind": "difference",
             "test": "paired_items", "primary": True}
        ],
    },
}  # fmt: skip


def low_rank_study(
    arms: Mapping[str, Any] | None = None, contrasts: tuple[dict[str, Any], ...] = (), **parameters: Any
) -> Study:
    """The study with further arms, further contrasts and other parameters."""
    change: dict[str, Any] = {
        "factors": {"compression": {name: {} for name in arms or {}}},
        "parameters": {"compression": dict(arms or {}), **parameters},
        "analysis": {"contrasts": [*STUDY["analysis"]["contrasts"], *contrasts]},
    }
    return changed(change)


def changed(change: dict[str, Any]) -> Study:
    """The study with any change."""
    return validated(Study, merged(STUDY, change), "small", {})


def timing(treatment: str, control: str, name: str = "speed", **more: Any) -> dict[str, Any]:
    """A contrast of speeds."""
    return {
        "name": name, "treatment": treatment, "control": control, "kind": "difference", "test": "paired_blocks", **more
    }  # fmt: skip


def laid(root: Path, asked: Study) -> StudyStore:
    """The study directory, no cell begun."""
    return StudyStore.create(root, asked, LowRank().plan(asked))


def ran(root: Path, asked: Study) -> StudyStore:
    """The study directory with every cell finished; nothing is harvested."""
    store = laid(root, asked)
    assert not Runner(store, InlineEngine()).run().failed
    return store


def the_cell(store: StudyStore, stage: str, arm: str | None = None, replicate: int | None = None) -> Cell:
    return next(c for c in store.plan if (c.stage, c.arm, c.replicate) == (stage, arm, replicate))


def finished(store: StudyStore, stage: str, arm: str | None = None, replicate: int | None = None) -> FinishedCell:
    found = store.finished(the_cell(store, stage, arm, replicate).id)
    assert found is not None
    return found


def weights_of(store: StudyStore, arm: str, replicate: int | None = None) -> str:
    """Hash of the weights that an arm really ran."""
    return str(finished(store, "evaluate", arm, replicate).json(TREATMENT)["weights"])
