"""Fusers: what maps a sharer's and a receiver's KV cache to the receiver's new one (C2C, arXiv 2510.03215).

Importing this or `layers` imports no torch; asking for a class or a function that needs it does.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from nullarm.protocols.kv_communication.fuser.layers import LayerMap, k_nearest, last_aligned, layer_map

if TYPE_CHECKING:
    from nullarm.protocols.kv_communication.fuser.checkpoint import load_fuser, save_fuser
    from nullarm.protocols.kv_communication.fuser.fuser import Fuser, fuse_in_parallel, fuse_sequentially
    from nullarm.protocols.kv_communication.fuser.projector import C2CProjector

__all__ = [
    "C2CProjector",
    "Fuser",
    "LayerMap",
    "fuse_in_parallel",
    "fuse_sequentially",
    "k_nearest",
    "last_aligned",
    "layer_map",
    "load_fuser",
    "save_fuser",
]

_WITH_TORCH = {
    "C2CProjector": "projector",
    "Fuser": "fuser",
    "fuse_in_parallel": "fuser",
    "fuse_sequentially": "fuser",
    "load_fuser": "checkpoint",
    "save_fuser": "checkpoint",
}
"""Names, and the modules that have them."""


def __getattr__(name: str) -> Any:
    if name not in _WITH_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WITH_TORCH[name]}"), name)
