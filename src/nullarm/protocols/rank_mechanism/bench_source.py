"""The keys of a source's bench file, handed out one by one, so that what nobody took can be named."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from nullarm.errors import StudyError, nearest

NOT_CARRIED = {
    "bench_version": "the version of another format",
    "run_type": "smoke runs are a profile: nullarm run … --profile quick",
    "train.seed": "every arm runs at every seed of `seeds`",
    "seed": "compression.seeds says which seeds run",
    "model.use_cache": "training never caches, generation always does",
    "train.logging_steps": "progress is shown as it goes",
    "train.eval_steps": "nothing is evaluated during training: a checkpoint would be chosen by its score",
    "audit": "every audit computes all its measures; how spectra become ranks is parameters.allocation",
    "runtime.keep_adapter_weights": "the probe's adapter is an artefact of its cell, others are not kept",
    "runtime.keep_checkpoints": "checkpoints go when their cell has ended",
}
"""Keys of the source that a study has no use for, and why. A section stands for all its keys."""


class BenchSource:
    """The leaves of a bench file by dotted key. What nobody takes is not carried.

    Args:
        path: Name of the file, for messages.
        data: What it holds.
    """

    def __init__(self, path: str, data: Mapping[str, Any]) -> None:
        self.path = path
        self._leaves = dict(_leaves(data))
        self._changed: dict[str, str] = {}

    def peek(self, key: str) -> Any:
        """The value of a key, which stays there to be named as not carried."""
        return self._leaves.get(key)

    def take(self, key: str, default: Any = None) -> Any:
        """The value of a key, or `default` where it is missing or null."""
        value = self._leaves.pop(key, None)
        return default if value is None else value

    def choose(self, key: str, default: Any, choices: Mapping[Any, Any]) -> Any:
        """What `choices` makes of the value of a key.

        Raises:
            StudyError: The value is none of the choices.
        """
        value = self.take(key, default)
        if isinstance(value, list | dict) or value not in choices:
            raise self.refusal(key, value, [c for c in choices if c is not None])
        return choices[value]

    def note(self, key: str, why: str) -> None:
        """Name a key that was taken but is not carried as it was."""
        self._changed[key] = why

    def refusal(self, key: str, value: object, valid: Any) -> StudyError:
        """An error for a key that a study cannot carry."""
        hint = nearest(value, valid) if isinstance(value, str) and isinstance(valid, list) else ""
        return StudyError(f"{self.path}: {key} cannot be carried into a study{hint}", value=value, valid=valid)

    def not_carried(self) -> dict[str, str]:
        """Why, by dotted key, for every key that was noted or that nobody took."""
        rest = {key: _why(key) for key in self._leaves}
        return {**self._changed, **rest}


def _why(key: str) -> str:
    return NOT_CARRIED.get(key) or NOT_CARRIED.get(key.partition(".")[0]) or "nullarm has no such setting"


def _leaves(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in data.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
