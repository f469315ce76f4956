"""What a module's dotted name says about it: which layer, which projection, attention or MLP."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

ModuleType = Literal["attn", "mlp", "other"]

PEFT_PREFIX = "base_model.model."

# `layers.3`, `h.3`, `block.3`, `encoder.layer.3`: the first numbered container is the transformer layer, whatever is
# numbered further in (T5's sub-layers, a mixture's experts) lies inside it.
_LAYER = re.compile(r"^(?:.*?\.)??(?:layers|layer|h|blocks|block)\.(\d+)(?=\.|$)")
_ATTENTION = re.compile(r"attn|attention|(^|\.)([qkvo]|qkv|out)_proj$|(^|\.)[qkv]_lin$|(^|\.)(query|key|value|wqkv)$")
_MLP = re.compile(
    r"mlp|ffn|feed_forward|feedforward|experts?(\.|$)|moe|densereludense|intermediate|(^|\.)output\.dense$"
    r"|(^|\.)(gate|up|down|gate_up)_proj$|(^|\.)(fc1|fc2|c_fc|w1|w2|w3|dense_h_to_4h|dense_4h_to_h)$"
)


def canonical_name(name: str) -> str:
    """The module's name in the base model: without PEFT's `base_model.model.` and its wrappers' `base_layer`."""
    return re.sub(r"\.base_layer(?=\.)", "", name.removeprefix(PEFT_PREFIX))


def layer_path(name: str) -> str | None:
    """Name of the transformer layer the module lies in (`model.layers.3`), or None outside of any."""
    match = _LAYER.match(name)
    return match.group(0) if match else None


def layer_index(name: str) -> int | None:
    """Number of that layer, or None outside of any."""
    match = _LAYER.match(name)
    return int(match.group(1)) if match else None


def module_kind(name: str) -> str:
    """The module's place within its layer, the same in every layer (`self_attn.q_proj`, `mlp.experts.*.w1`)."""
    inside = name.removeprefix(layer_path(name) or "").removeprefix(".")
    return ".".join("*" if part.isdigit() else part for part in inside.split("."))


def module_type(name: str) -> ModuleType:
    """Attention, MLP or other, from the module's place within its layer."""
    kind = module_kind(name).lower()
    if _ATTENTION.search(kind):
        return "attn"
    return "mlp" if _MLP.search(kind) else "other"


def and_more(names: Iterable[str], shown: int = 3) -> str:
    """The first names of a list and how many follow, for messages."""
    listed = list(names)
    rest = len(listed) - shown
    return ", ".join(listed[:shown]) + (f" and {rest} more" if rest > 0 else "")


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key under which `layers.2` comes before `layers.10`."""
    return tuple((1, int(part), "") if part.isdigit() else (0, 0, part) for part in name.split("."))
