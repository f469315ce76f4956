"""Models without weights: module shapes, and spectra that ask for given ranks."""

from __future__ import annotations

from collections.abc import Mapping

from hypothesis import strategies as st

from nullarm.protocols.rank_mechanism.ranks import ModuleShape

PROJECTIONS = {  # {module: (in, out)}, a small Llama with grouped keys
    "self_attn.q_proj": (64, 64),
    "self_attn.k_proj": (64, 32),
    "self_attn.v_proj": (64, 32),
    "self_attn.o_proj": (64, 64),
    "mlp.gate_proj": (64, 96),
    "mlp.up_proj": (64, 96),
    "mlp.down_proj": (96, 64),
}
LADDER = (1, 2, 4, 8, 16)


def llama_shapes(layers: int) -> tuple[ModuleShape, ...]:
    return tuple(
        ModuleShape(f"model.layers.{layer}.{name}", n_in, n_out)
        for layer in range(layers)
        for name, (n_in, n_out) in PROJECTIONS.items()
    )


def spectrum(rank: int, size: int = 16) -> list[float]:
    """Flat over `rank` directions, so that k@0.9 is ⌈0.9 · rank⌉ and k@1.0 is `rank`."""
    return [1.0] * rank + [0.0] * (size - rank)


def spectra_for(ranks: Mapping[str, int]) -> dict[str, list[float]]:
    return {name: spectrum(rank) for name, rank in ranks.items()}


@st.composite
def shaped_ranks(draw: st.DrawFn) -> tuple[tuple[ModuleShape, ...], dict[str, int]]:
    """Modules of a few shapes with ranks of the ladder, in any arrangement."""
    dimensions = st.integers(1, 40)
    kinds = draw(st.lists(st.tuples(dimensions, dimensions), min_size=1, max_size=4))
    layers = draw(st.integers(1, 5))
    shapes = tuple(
        ModuleShape(f"model.layers.{layer}.part{k}", n_in, n_out)
        for layer in range(layers)
        for k, (n_in, n_out) in enumerate(kinds)
    )
    ranks = {shape.name: draw(st.sampled_from(LADDER)) for shape in shapes}
    return shapes, ranks
