"""The seven matrices of a gated block by their slot, and the groups of them that share one basis.

Nothing here needs torch: a study is planned, and its bytes counted, before any model is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nullarm.errors import ModelError, StudyError
from nullarm.models.anatomy import anatomy
from nullarm.models.facts import linear_shapes

if TYPE_CHECKING:
    from torch import nn

MODULES: Mapping[str, str] = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
"""Name of each slot's module inside a block."""

SLOTS = tuple(MODULES)

INPUTS: Mapping[str, str] = {
    "q": "attention",
    "k": "attention",
    "v": "attention",
    "o": "heads",
    "gate": "mlp",
    "up": "mlp",
    "down": "neurons",
}
"""What each slot reads; slots with one input can share a basis."""

_SHARING = (("q", "k", "v"), ("o",), ("gate", "up"), ("down",))
_GATED = "models with q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj and down_proj: Llama, Mistral, Qwen, Gemma"


@dataclass(frozen=True)
class Group:
    """The matrices of one layer that share one basis: together, a matrix of shape `[sum(out_features), in_features]`.

    Attributes:
        layer: Number of the block, from 0.
        slots: In the order of `SLOTS`.
        in_features: Width of what all of them read.
        out_features: Rows of each.
    """

    layer: int
    slots: tuple[str, ...]
    in_features: int
    out_features: tuple[int, ...]

    @property
    def dense_numbers(self) -> int:
        """Numbers in the matrices as they are, biases left out."""
        return self.in_features * sum(self.out_features)

    @property
    def max_rank(self) -> int:
        """Rank at which nothing is lost."""
        return min(self.in_features, sum(self.out_features))

    @property
    def break_even(self) -> int:
        """Largest rank at which the factors hold no more numbers than the matrices."""
        return self.dense_numbers // self.factored_numbers(1)

    def factored_numbers(self, rank: int) -> int:
        """Numbers in the basis and the factors over it."""
        return rank * (self.in_features + sum(self.out_features))


def groups(ref: str, slots: Collection[str], shared: bool) -> list[Group]:
    """The groups of a model, layer by layer, from its configuration alone.

    Args:
        ref: Model reference.
        slots: Which matrices.
        shared: Whether q, k and v share a basis, and gate and up, where all of them are asked for.

    Raises:
        StudyError: There is no such slot.
        ModelError: The model is not known, or has other matrices than these.
    """
    if unknown := sorted(set(slots) - set(SLOTS)):
        raise StudyError("there is no such slot", value=unknown[0], valid=SLOTS)
    members = [part for sharing in _SHARING for part in _parts(sharing, slots, shared)]
    return [
        Group(layer, part, shapes[part[0]][0], tuple(shapes[slot][1] for slot in part))
        for layer, shapes in _shapes(ref).items()
        for part in members
    ]


def place(model: Any, layer: int, slot: str) -> tuple[nn.Module, str]:
    """The module that has a slot's module as an attribute, and the attribute's name.

    Raises:
        ModelError: There is no such layer, or its block has other matrices than these.
    """
    blocks = anatomy(model).blocks
    if layer not in range(len(blocks)):
        raise ModelError("there is no such layer", value=layer, valid=f"0 to {len(blocks) - 1}")
    path, _, name = MODULES[slot].rpartition(".")
    parent: nn.Module | None = getattr(blocks[layer], path, None)
    if parent is None or not hasattr(parent, name):
        raise ModelError(f"layer {layer} has no slot {slot}", value=type(model).__name__, valid=_GATED)
    return parent, name


def linear(model: Any, layer: int, slot: str) -> nn.Linear:
    """The matrix of a slot, in a model as it was loaded.

    Raises:
        ModelError: There is no such layer or slot, or something else than a plain linear layer is in its place.
    """
    from torch import nn

    parent, name = place(model, layer, slot)
    found = getattr(parent, name)
    if not isinstance(found, nn.Linear):
        raise ModelError(
            f"layer {layer}, slot {slot} is no plain linear layer",
            value=type(found).__name__,
            valid="a model that is not compressed, with its adapters merged",
        )
    return found


def _parts(sharing: tuple[str, ...], slots: Collection[str], shared: bool) -> list[tuple[str, ...]]:
    asked = tuple(slot for slot in sharing if slot in slots)
    return [asked] if shared and asked == sharing else [(slot,) for slot in asked]


def _shapes(ref: str) -> dict[int, dict[str, tuple[int, int]]]:
    """`(in, out)` by layer and slot."""
    slot_of = {module: slot for slot, module in MODULES.items()}
    shapes: dict[int, dict[str, tuple[int, int]]] = {}
    for name, shape in linear_shapes(ref).items():
        found = re.fullmatch(r".+?\.(\d+)\.(.+)", name)
        if found is None or found[2] not in slot_of:
            raise ModelError(f"the blocks of {ref} have other matrices than the slots", value=name, valid=_GATED)
        shapes.setdefault(int(found[1]), {})[slot_of[found[2]]] = shape
    return shapes
