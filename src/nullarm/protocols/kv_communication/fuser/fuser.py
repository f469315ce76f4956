"""A fuser: the projectors from one sharer to one receiver, applied to whole caches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict, Unpack, cast

import torch
from torch import Tensor, nn

from nullarm.errors import ModelError
from nullarm.protocols.kv_communication.fuser.layers import LayerMap, last_aligned
from nullarm.protocols.kv_communication.fuser.projector import KV, C2CProjector, SourceKV, open_halves
from nullarm.protocols.kv_communication.geometry import HALVES, Geometry, Half, Stream, of

Entries = tuple[tuple[int, int], ...]
"""(source layer, projector index) of each projector that changes a target layer."""


class ProjectorOptions(TypedDict, total=False):
    """What `C2CProjector` takes beside the two geometries, with its defaults."""

    hidden_dim: int
    intermediate_dim: int
    num_layers: int
    dropout: float
    initial_temperature: float
    final_temperature: float
    anneal_steps: int
    dtype: torch.dtype | str
    zero_init: bool


class Fuser(nn.Module):
    """Projectors, and which source layer each of them takes to which target layer.

    A fuser is made in training mode, where gates that are trained are all partly open, and `streams` and `fuse` take
    every half; in evaluation they leave out the closed ones.

    Attributes:
        projectors: All projectors.
        layers: Target layer to its (source layer, projector index) pairs. A target layer that is not here stays as it
            is; the changes of several projectors to one layer are added up.

    Raises:
        ModelError: A layer is negative, has no entry, or names a projector that is not there.
    """

    def __init__(self, projectors: Sequence[C2CProjector], layers: Mapping[int, Entries]) -> None:
        super().__init__()
        self.projectors = nn.ModuleList(projectors)
        self.layers: Mapping[int, Entries] = {target: tuple(layers[target]) for target in sorted(layers)}
        if not self.layers or not all(self.layers.values()):
            raise ModelError("a fuser has no projector for a layer", value=layers, valid="at least one for each layer")
        for target, entries in self.layers.items():
            for source, index in entries:
                if min(target, source) < 0 or not 0 <= index < len(projectors):
                    raise ModelError(
                        f"target layer {target} of a fuser has an entry out of range",
                        value=(source, index),
                        valid=f"(source layer from 0, projector from 0 to {len(projectors) - 1})",
                    )

    @classmethod
    def create(
        cls,
        source: Geometry,
        target: Geometry,
        layer_map: LayerMap | None = None,
        **options: Unpack[ProjectorOptions],
    ) -> Fuser:
        """A fresh fuser with one projector per pair of layers; weights from torch's global generator.

        Args:
            source: Cache of the sharer.
            target: Cache of the receiver.
            layer_map: Which layers feed which; `last_aligned` when left out.
            **options: Of the projectors.

        Raises:
            ModelError: An option is out of its range, or the map names a layer that a model does not have.
        """
        pairs = last_aligned(source.layers, target.layers) if layer_map is None else layer_map
        shape = (source.head_dim, target.head_dim, source.heads, target.heads)
        projectors: list[C2CProjector] = []
        layers: dict[int, Entries] = {}
        for layer, sources in pairs.items():
            layers[layer] = tuple((from_layer, len(projectors) + n) for n, from_layer in enumerate(sources))
            projectors += [C2CProjector(*shape, **options) for _ in sources]
        fuser = cls(projectors, layers)
        fuser.check_fits(source, target)
        return fuser

    def __getitem__(self, layer: int) -> C2CProjector:
        """The projector of a target layer that has one source.

        Raises:
            ModelError: The layer has no projector, or several.
        """
        entries = self.layers.get(layer, ())
        if len(entries) != 1:
            with_one = [target for target, found in self.layers.items() if len(found) == 1]
            raise ModelError(
                f"target layer {layer} has {len(entries)} projectors, not one", valid=with_one or "call `fuse` instead"
            )
        return self._typed[entries[0][1]]

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[int]:
        return iter(self.layers)

    def check_fits(self, source: Geometry, target: Geometry) -> None:
        """Refuse models of another shape than the fuser's.

        Raises:
            ModelError: A head, its size or the number of layers is not what the fuser needs.
        """
        for name, model, deepest in (
            ("sharer", source, max(layer for entries in self.layers.values() for layer, _ in entries)),
            ("receiver", target, max(self.layers)),
        ):
            sides = {(p.source_shape if name == "sharer" else p.target_shape) for p in self._typed}
            if sides != {(model.heads, model.head_dim)} or deepest >= model.layers:
                needs = " and ".join(f"{heads} heads of {dim}" for heads, dim in sorted(sides))
                raise ModelError(
                    f"the fuser does not fit this {name}",
                    value=f"{model.layers} layers, {model.heads} heads of {model.head_dim}",
                    valid=f"at least {deepest + 1} layers, {needs}",
                )

    def fix_gates(self) -> None:
        """Keep every gate as it is while the rest is trained on: open or closed, in training as in evaluation.

        The weights of a half behind a closed gate, which nothing reaches, are kept as well.

        Raises:
            ModelError: Every gate is closed.
        """
        for projector in self._typed:
            for half in HALVES:
                projector.fix_gate(half)
        if not any(open_halves(self._typed)):
            raise ModelError("every gate of the fuser is closed: nothing to train", valid="a fuser with an open gate")

    def set_step(self, step: int) -> None:
        """Anneal all gates to where they are after `step` optimiser steps."""
        for projector in self._typed:
            projector.set_step(step)

    def streams(self) -> tuple[Stream, ...]:
        """What `fuse` reads of the sharer in the present mode: each stream once, by layer, key before value."""
        are_open = open_halves(self._typed)
        return tuple(
            sorted({Stream(s, half) for entries in self.layers.values() for s, p in entries for half in are_open[p]})
        )

    def fuse(
        self,
        source: Mapping[int, SourceKV],
        target: Sequence[KV],
        mask: Tensor | None = None,
        *,
        onto: Sequence[KV] | None = None,
    ) -> list[KV]:
        """The receiver's cache with what the sharer knows.

        Only positions in the mask are computed, so what stands at the others (padding, tokens that were not sent) is
        never read. A half that no open gate changes is returned as the tensor it is.

        Args:
            source: Layer of the sharer to its keys and values, `[batch, source heads, tokens, source head_dim]`, with
                the tokens in the receiver's places. What is not in `streams` may be None or absent.
            target: Per layer of the receiver, keys and values `[batch, heads, tokens, head_dim]`.
            mask: `[batch, tokens]`, true where to fuse; everywhere when left out.
            onto: What the changes are added to, shaped as `target`; `target` when left out.

        Returns:
            As `onto`, changed where the mask is true.

        Raises:
            ModelError: A stream is missing, a shape is wrong, or the target has too few layers.
        """
        if max(self.layers) >= len(target):
            raise ModelError("the receiver has too few layers", value=len(target), valid=f"from {max(self.layers) + 1}")
        places = _Places.of(mask, target)
        are_open = open_halves(self._typed)
        fused = [list(kv) for kv in (target if onto is None else onto)]
        for layer, entries in self.layers.items():
            for n, half in enumerate(HALVES):
                chosen = [(s, self._typed[p]) for s, p in entries if half in are_open[p]]
                if not chosen:
                    continue
                own = places.take(target[layer][n])
                total = own if fused[layer][n] is target[layer][n] else places.take(fused[layer][n])
                for source_layer, projector in chosen:
                    sent = places.take(_stream(source, source_layer, half))
                    total = projector.fuse_half(half, sent, own, onto=total)
                fused[layer][n] = places.put(fused[layer][n], total)
        return [(key, value) for key, value in fused]

    @property
    def _typed(self) -> list[C2CProjector]:
        return cast("list[C2CProjector]", list(self.projectors))


def fuse_sequentially(
    fusers: Sequence[Fuser],
    sources: Sequence[Mapping[int, SourceKV]],
    target: Sequence[KV],
    masks: Sequence[Tensor | None],
) -> list[KV]:
    """Several sharers, one after the other: each fuser sees what the one before it made of the target.

    Arguments are those of `Fuser.fuse`, one per sharer; so is what is raised.
    """
    fused = list(target)
    for fuser, source, mask in zip(fusers, sources, masks, strict=True):
        fused = fuser.fuse(source, fused, mask)
    return fused


def fuse_in_parallel(
    fusers: Sequence[Fuser],
    sources: Sequence[Mapping[int, SourceKV]],
    target: Sequence[KV],
    masks: Sequence[Tensor | None],
) -> list[KV]:
    """Several sharers at once: each fuser sees the target as it was, and their changes are added up.

    Arguments are those of `Fuser.fuse`, one per sharer; so is what is raised.
    """
    fused = list(target)
    for fuser, source, mask in zip(fusers, sources, masks, strict=True):
        fused = fuser.fuse(source, target, mask, onto=fused)
    return fused


@dataclass(frozen=True)
class _Places:
    """The positions to fuse of `(batch, tokens)`: their batch and token indices, or None for all."""

    shape: tuple[int, int]
    indices: tuple[Tensor, Tensor] | None

    @classmethod
    def of(cls, mask: Tensor | None, target: Sequence[KV]) -> _Places:
        batch, _, tokens, _ = target[0][0].shape
        if mask is None:
            return cls((batch, tokens), None)
        if mask.shape != (batch, tokens):
            raise ModelError("the mask has another shape", value=tuple(mask.shape), valid=[(batch, tokens)])
        batch_indices, token_indices = mask.nonzero(as_tuple=True)
        return cls((batch, tokens), (batch_indices, token_indices))

    def take(self, kv: Tensor) -> Tensor:
        """`[batch, heads, tokens, head_dim]` at the positions, as a batch of one."""
        if (kv.shape[0], kv.shape[2]) != self.shape:
            raise ModelError(
                "keys or values are of other sequences than the receiver's",
                value=tuple(kv.shape),
                valid=f"batch {self.shape[0]} and {self.shape[1]} tokens",
            )
        return kv if self.indices is None else kv.transpose(1, 2)[self.indices].transpose(0, 1)[None]

    def put(self, kv: Tensor, taken: Tensor) -> Tensor:
        """A copy of `kv` with the positions replaced."""
        if self.indices is None:
            return taken
        return kv.transpose(1, 2).index_put(self.indices, taken[0].transpose(0, 1)).transpose(1, 2)


def _stream(source: Mapping[int, SourceKV], layer: int, half: Half) -> Tensor:
    found = of(source, Stream(layer, half)) if layer in source else None
    if found is None:
        sent = [
            f"{half} of {n}"
            for n in sorted(source)
            for half, kv in zip(HALVES, source[n], strict=True)
            if kv is not None
        ]
        raise ModelError(
            f"the sharer's {half} of layer {layer} is missing",
            valid=f"all of `streams()`; sent: {', '.join(sent) or 'nothing'}",
        )
    return found
