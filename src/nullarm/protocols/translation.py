"""What a runbook's own configuration file becomes: a study, and what a study cannot carry."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml


@dataclass(frozen=True)
class Translation:
    """A study that is ready for validation.

    Attributes:
        study: The study file as plain data.
        not_carried: Why, by dotted key of the source's file, for every key that the study does not carry as it was.
    """

    study: dict[str, Any]
    not_carried: Mapping[str, str]

    def text(self, source: str) -> str:
        """The study file, headed by what was not carried from `source`."""
        head = [f"# Translated from {source} by nullarm. Look at it with: nullarm plan THIS_FILE"]
        head += [f"# not carried: {key}: {why}" for key, why in self.not_carried.items()]
        return "\n".join(head) + "\n" + yaml.safe_dump(self.study, sort_keys=False, allow_unicode=True)


def name_from(text: str, otherwise: str) -> str:
    """`text` as a name of a study or arm, or `otherwise` where nothing of it is left."""
    return (re.sub(r"[^A-Za-z0-9_.-]+", "_", text).lstrip("_.-0123456789") or otherwise)[:64]
