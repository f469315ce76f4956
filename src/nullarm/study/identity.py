"""What makes a cell the same cell: one versioned function over canonical JSON.

Same id, same question: resume, skipping what exists and caching all rest on it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

IDENTITY_VERSION = 1
"""Raise it when `cell_id` or `canonical_json` changes: old cells are then new questions."""

LEFT_OUT: Mapping[str, str] = {
    "machine, engine, site, device": "where a cell ran is provenance; a study must move between machines",
    "paths and cache directories": "a model is named by the content of its files, not by where they lie",
    "study name, question, prices, budget": "they do not change what a cell computes",
    "declared analysis": "it reads cells and has a hash of its own; a new margin must not repeat the training",
    "resources (CPUs, GPUs, attempts)": "how fast a cell runs, not what it finds",
    "parameters that a protocol leaves out": "each with its reason, beside the protocol's parameters",
    "labels and estimates": "for people and for scheduling",
}
"""What the identity leaves out, and why."""

ID_LENGTH = 20


def canonical_json(value: Any) -> bytes:
    """Canonical JSON: sorted keys, no spaces, ASCII, 1.0 written as 1, no NaN.

    Raises:
        ValueError: A number is not finite, a key is not text, or a type has no JSON form.
    """
    return json.dumps(_canonical(value), sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def content_hash(value: Any) -> str:
    """SHA-256, in hex, of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def identifying(parameters: BaseModel, left_out: Mapping[str, str]) -> dict[str, Any]:
    """The parameters that are part of the identity.

    Args:
        parameters: A protocol's parameters.
        left_out: Dotted names of the parameters that do not change a result, each with the reason.

    Raises:
        KeyError: `left_out` names a parameter that does not exist.
    """
    kept: dict[str, Any] = parameters.model_dump(mode="json")
    for dotted in left_out:
        *path, last = dotted.split(".")
        holder = kept
        for key in path:
            holder = holder[key]
        del holder[last]
    return kept


def cell_id(identity: Mapping[str, Any]) -> str:
    """Id of the cell with this identity: the first 80 bits of its hash, in hex.

    Args:
        identity: The payload that `Cell.identity` builds: protocol and version, stage, parameters, arm, replicate,
            seed, slice, content ids of inputs, ids of the cells it needs, smoke.
    """
    return content_hash({"identity_version": IDENTITY_VERSION, **identity})[:ID_LENGTH]


def _canonical(value: Any) -> Any:
    if isinstance(value, bool) or value is None or isinstance(value, str | int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"not a finite number: {value!r}")
        return int(value) if value.is_integer() and abs(value) < 2**53 else value
    if isinstance(value, Mapping):
        if bad := [k for k in value if not isinstance(k, str)]:
            raise ValueError(f"a key is not text: {bad[0]!r}")
        return {k: _canonical(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(v) for v in value]
    raise ValueError(f"no JSON form for {type(value).__name__}")
