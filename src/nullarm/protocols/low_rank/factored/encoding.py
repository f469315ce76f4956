"""Compressed matrices as named tensors, and a list of JSON that says what each group of them is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from nullarm.protocols.low_rank.factored.factors import Compressed, Factors, Rounded


def encode(compressed: Compressed) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Tensors by name, on the CPU and in the dtype they have, and one entry for each group, in order."""
    tensors = {
        name: tensor.detach().cpu().contiguous()
        for (layer, _), matrices in compressed.items()
        for name, tensor in _named(_prefix(layer, matrices.slots), matrices).items()
    }
    return tensors, [_entry(layer, matrices) for (layer, _), matrices in compressed.items()]


def decode(tensors: Mapping[str, Tensor], entries: Sequence[Mapping[str, Any]]) -> Compressed:
    """What `encode` was given.

    Raises:
        KeyError: A tensor is missing.
    """
    keys = [(entry["layer"], tuple(entry["slots"])) for entry in entries]
    return {key: _matrices(_prefix(*key), tensors, entry) for key, entry in zip(keys, entries, strict=True)}


def _prefix(layer: int, slots: tuple[str, ...]) -> str:
    return f"{layer}.{'+'.join(slots)}"


def _named(prefix: str, matrices: Factors | Rounded) -> dict[str, Tensor]:
    if isinstance(matrices, Rounded):
        return {f"{prefix}.codes": matrices.codes, f"{prefix}.scales": matrices.scales}
    weights = zip(matrices.slots, matrices.weights, strict=True)
    return {f"{prefix}.basis": matrices.basis} | {f"{prefix}.{slot}": weight for slot, weight in weights}


def _entry(layer: int, matrices: Factors | Rounded) -> dict[str, Any]:
    common = {"layer": layer, "slots": list(matrices.slots)}
    if isinstance(matrices, Rounded):
        rounding = {"bits": matrices.bits, "block": matrices.block, "shape": list(matrices.shape)}
        return {**common, "kind": "rounded", **rounding}
    return {**common, "kind": "factors", "rank": matrices.rank}


def _matrices(prefix: str, tensors: Mapping[str, Tensor], entry: Mapping[str, Any]) -> Factors | Rounded:
    slots = tuple(entry["slots"])
    if entry["kind"] == "rounded":
        out, columns = entry["shape"]
        codes, scales = tensors[f"{prefix}.codes"], tensors[f"{prefix}.scales"]
        return Rounded(slots, codes, scales, entry["bits"], entry["block"], (out, columns))
    return Factors(slots, tensors[f"{prefix}.basis"], tuple(tensors[f"{prefix}.{slot}"] for slot in slots))
