"""Layer maps: which layers of the sharer feed which layer of the receiver. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from nullarm.errors import StudyError

LayerMap = Mapping[int, tuple[int, ...]]
"""Target layer (receiver's) to its source layers (sharer's), ascending."""


def last_aligned(source_layers: int, target_layers: int) -> LayerMap:
    """Last layer to last layer, and so on down: target t takes source clamp(S − T + t, 0, S − 1).

    Where the sharer is the shallower, several of the lowest target layers take its layer 0.

    Args:
        source_layers: S, layers of the sharer.
        target_layers: T, layers of the receiver.
    """
    return {t: (max(source_layers - target_layers + t, 0),) for t in range(target_layers)}


def k_nearest(source_layers: int, target_layers: int, k: int = 1) -> LayerMap:
    """The k source layers that are nearest in normalised depth, ℓ / (layers − 1); of two as near, the lower.

    Args:
        source_layers: S, layers of the sharer.
        target_layers: T, layers of the receiver.
        k: Sources of each target layer; each gets a projector of its own, and their changes are added up.

    Raises:
        StudyError: k is not between 1 and S.
    """
    if not 1 <= k <= source_layers:
        raise StudyError("k of layer map k_nearest is out of range", value=k, valid=f"from 1 to {source_layers}")
    deepest_source, deepest_target = max(source_layers - 1, 1), max(target_layers - 1, 1)

    def nearest_to(t: int) -> tuple[int, ...]:
        by_distance = sorted(range(source_layers), key=lambda s: abs(s * deepest_target - t * deepest_source))
        return tuple(sorted(by_distance[:k]))

    return {t: nearest_to(t) for t in range(target_layers)}


def layer_map(
    name: Literal["last_aligned", "k_nearest"], source_layers: int, target_layers: int, sources: int = 1
) -> LayerMap:
    """The map that a study names.

    Args:
        name: Of the map.
        source_layers: S, layers of the sharer.
        target_layers: T, layers of the receiver.
        sources: Of each target layer.

    Raises:
        StudyError: The map does not give a layer that many sources.
    """
    if name == "k_nearest":
        return k_nearest(source_layers, target_layers, sources)
    if sources != 1:
        raise StudyError("layer map last_aligned has one source for each layer", value=sources, valid="1, or k_nearest")
    return last_aligned(source_layers, target_layers)
