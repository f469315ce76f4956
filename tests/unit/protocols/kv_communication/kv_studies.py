"""A small study of key-value communication, as plain data, on the built-in small world."""

from __future__ import annotations

from typing import Any

from nullarm.study.load import merged
from nullarm.study.spec import Study
from nullarm.study.validate import validated

TRAINING = {"steps": 3, "batch_size": 8, "learning_rate": 1e-3}

STUDY: dict[str, Any] = {
    "format": 1,
    "name": "small",
    "question": "does it run?",
    "protocol": "kv_communication",
    "seeds": [0],
    "factors": {"channel": {"alone": {"role": "reference"}, "c2c": {}}},
    "parameters": {
        "receiver": "builtin:world",
        "sharers": {"chat": "builtin:world-chat"},
        "fusers": {"main": {"sharer": "chat", "shape": {"hidden_dim": 8, "intermediate_dim": 8}, "training": TRAINING}},
        "channels": {"alone": {"via": "receiver"}, "c2c": {}},
        "tasks": [{"kind": "world_relations", "test_items": 12, "dev_items": 6}],
        "calibration_items": 3,
        "chunk_size": 8,
    },
    "analysis": {
        "metric": "accuracy",
        "margin": 0.05,
        "contrasts": [
            {"name": "main", "treatment": "c2c", "control": "alone", "test": "paired_items", "primary": True}
        ],
    },
}


def study(channels: dict[str, Any] | None = None, **parameters: Any) -> Study:
    """The study with further channels, each an arm, and other parameters."""
    change = {
        "factors": {"channel": {name: {} for name in channels or {}}},
        "parameters": {"channels": channels or {}, **parameters},
    }
    return validated(Study, merged(STUDY, change), "small", {})
