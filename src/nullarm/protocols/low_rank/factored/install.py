"""Putting compressed matrices into a model, for good or for a while, and counting what they take."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from nullarm.errors import ModelError
from nullarm.models.anatomy import anatomy
from nullarm.protocols.low_rank.factored.factors import Compressed, Factors, Rounded
from nullarm.protocols.low_rank.factored.linear import FactoredLinear, RoundedLinear
from nullarm.protocols.low_rank.factored.shared import SharedBasis, SharedLinear
from nullarm.protocols.low_rank.slots import INPUTS, linear, place


def install(model: Any, compressed: Compressed) -> None:
    """Replace linear layers by compressed ones, which take over bias, device and (codes apart) dtype.

    Nothing is changed unless all of it fits.

    Raises:
        ModelError: A group does not fit its layer, or a slot is there twice, unknown, or compressed already.
    """
    _refuse_twice(compressed)
    made = [pair for (layer, _), matrices in compressed.items() for pair in _modules(model, layer, matrices)]
    for (parent, name), module in made:
        setattr(parent, name, module)


@contextmanager
def replaced(model: Any, compressed: Compressed) -> Iterator[None]:
    """The model with compressed layers inside of `with`, and with its own again afterwards.

    Raises:
        ModelError: As `install`.
    """
    places = [place(model, layer, slot) for layer, slots in compressed for slot in slots]
    before = [(parent, name, getattr(parent, name)) for parent, name in places]
    try:
        install(model, compressed)
        yield
    finally:
        for parent, name, module in before:
            setattr(parent, name, module)


def weight_bytes(model: Any, slots: Collection[str]) -> int:
    """Bytes of the matrices in these slots of all layers, as they are stored now; a shared basis counts once.

    Raises:
        ModelError: The model has no such slots.
    """
    layers = range(len(anatomy(model).blocks))
    tensors = [tensor for layer in layers for slot in slots for tensor in _weight_tensors(model, layer, slot)]
    return sum({id(tensor): tensor.nbytes for tensor in tensors}.values())


def _weight_tensors(model: Any, layer: int, slot: str) -> tuple[Tensor, ...]:
    parent, name = place(model, layer, slot)
    found = getattr(parent, name)
    if isinstance(found, FactoredLinear | SharedLinear | RoundedLinear):
        return found.weight_tensors
    return (linear(model, layer, slot).weight,)


def _modules(model: Any, layer: int, matrices: Factors | Rounded) -> Iterator[tuple[tuple[nn.Module, str], nn.Module]]:
    """Places in the model, with what is to stand there."""
    linears = [linear(model, layer, slot) for slot in matrices.slots]
    _refuse_misfits(layer, matrices, linears)
    for slot, old, new in zip(matrices.slots, linears, _replacements(matrices, linears), strict=True):
        yield place(model, layer, slot), new.train(old.training)


def _replacements(matrices: Factors | Rounded, linears: list[nn.Linear]) -> list[nn.Module]:
    if isinstance(matrices, Rounded):
        return [RoundedLinear(matrices, linears[0])]
    if len(linears) == 1:
        return [FactoredLinear(matrices, linears[0])]
    shared = SharedBasis(matrices, linears)
    return [SharedLinear(shared, index) for index in range(len(linears))]


def _refuse_twice(compressed: Compressed) -> None:
    seen: set[tuple[int, str]] = set()
    for (layer, slots), matrices in compressed.items():
        if slots != matrices.slots:
            raise ModelError(f"layer {layer} has matrices of other slots", value=matrices.slots, valid=slots)
        for slot in slots:
            if (layer, slot) in seen:
                raise ModelError(f"layer {layer}, slot {slot} is compressed twice", valid="one group for each slot")
            seen.add((layer, slot))


def _refuse_misfits(layer: int, matrices: Factors | Rounded, linears: list[nn.Linear]) -> None:
    if len({INPUTS[slot] for slot in matrices.slots}) != 1:
        readers = [slot for slot in INPUTS if INPUTS[slot] == INPUTS[matrices.slots[0]]]
        raise ModelError(f"slots of layer {layer} that read different vectors", value=matrices.slots, valid=readers)
    for slot, shape, old in zip(matrices.slots, matrices.shapes, linears, strict=True):
        if shape != tuple(old.weight.shape):
            raise ModelError(
                f"layer {layer}, slot {slot}: the compressed matrix does not fit (out × in)",
                value=" × ".join(map(str, shape)),
                valid=" × ".join(map(str, old.weight.shape)),
            )
