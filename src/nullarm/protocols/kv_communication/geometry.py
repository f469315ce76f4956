"""Sizes of a key-value cache, and the names of its parts. No torch: plans and byte formulas need them too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

from nullarm.models.facts import shape_facts

Half = Literal["key", "value"]

HALVES: tuple[Half, Half] = ("key", "value")


class Stream(NamedTuple):
    """What crosses the wire or does not: the keys, or the values, of one layer of the sharer."""

    layer: int
    half: Half


T = TypeVar("T", covariant=True)


class ByLayer(Protocol[T]):
    """Keys and values of layers, in a sequence or by the layer's number."""

    def __getitem__(self, layer: int, /) -> tuple[T, T]: ...


def of(kv: ByLayer[T], stream: Stream) -> T:
    """The keys or values that a stream is, of all layers' (key, value)."""
    return kv[stream.layer][HALVES.index(stream.half)]


def by_layer(streams: Mapping[Stream, T]) -> dict[int, tuple[T | None, T | None]]:
    """Key and value of each layer that has either, None for the one that is not there."""
    layers = sorted({stream.layer for stream in streams})
    return {layer: (streams.get(Stream(layer, "key")), streams.get(Stream(layer, "value"))) for layer in layers}


@dataclass(frozen=True)
class Geometry:
    """Sizes of a model's cache.

    Attributes:
        layers: Layers that have a cache.
        heads: Key-value heads of a layer.
        head_dim: Width of a head.
    """

    layers: int
    heads: int
    head_dim: int

    @classmethod
    def of(cls, config: Any) -> Geometry:
        """Of a loaded model's configuration (`model.config`)."""
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return cls(config.num_hidden_layers, heads, head_dim)

    @classmethod
    def of_reference(cls, ref: str) -> Geometry:
        """Of a model reference, before any weights are loaded.

        Raises:
            ModelError: The reference is wrong, or its configuration is not at hand.
        """
        facts = shape_facts(ref)
        return cls(facts.layers, facts.key_value_heads, facts.head_dim)

    @property
    def width(self) -> int:
        """Numbers that one token has in one stream."""
        return self.heads * self.head_dim

    @property
    def streams(self) -> tuple[Stream, ...]:
        """All of them, layer by layer."""
        return tuple(Stream(layer, half) for layer in range(self.layers) for half in HALVES)
