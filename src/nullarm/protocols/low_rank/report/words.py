"""Methods in a few words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nullarm.protocols.low_rank.parameters import CompressionArm


def arm_words(arm: CompressionArm) -> str:
    """What an arm does to the model."""
    if arm.speculation is not None:
        return f"{arm.speculation.drafter} drafts {arm.speculation.tokens} tokens, the model as loaded verifies"
    if arm.method is None:
        return "as loaded"
    if arm.method.kind == "round_to_nearest":
        return f"int{arm.method.bits}, blocks of {arm.method.block}"
    said = [method_words({"kind": arm.method.kind, **arm.method.model_dump(exclude_defaults=True)})]
    if arm.gauge is not None:
        said.append("gauge" if arm.gauge.fitted else "gauge g = 1")
    if arm.online is not None:
        said.append(f"online: {arm.online.direction}")
    if arm.allocation.kind != "uniform":
        said.append(f"ranks: {arm.allocation.kind}")
    return ", ".join(said)


def method_words(method: Mapping[str, Any]) -> str:
    """A method and its knobs, as plain data."""
    return ", ".join([method["kind"], *(_knob(name, value) for name, value in method.items() if name != "kind")])


def _knob(name: str, value: object) -> str:
    return f"{'' if value else 'not '}{name}" if isinstance(value, bool) else f"{name} {value}"
