"""The instrument on a model and itself: what it shows there is what it makes up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from nullarm.protocols.residual.capture import geometry
from nullarm.protocols.residual.capture.batch import Capture
from nullarm.protocols.residual.capture.lens import project
from nullarm.protocols.residual.reading.rows import Row
from nullarm.protocols.residual.runs import Passes, Run

ITSELF = Run("base", body="base", embedding="base", unembedding="base")


@torch.no_grad()
def self_divergence(capture: Capture, batch: Sequence[Row]) -> dict[str, float]:
    """Run the base model twice on one batch and compare.

    Returns:
        Largest `relative_diff`, `kl_div` and `js` (nats) over layers and positions: 0 for a deterministic device.
    """
    layers = range(capture.models.base.layers)
    twin = Capture(capture.models, Passes((ITSELF,), ()), capture.lens, layers, same_tokens=True, direct_change=False)
    left, right = (twin.compared(ITSELF, batch, twin.streams([batch])[0]) for _ in range(2))
    anatomy, unembedding = capture.models.base.anatomy, capture.lens.unembeddings["base"]
    states = [capture.lens.read(anatomy, "base", stream[1:]) for stream in (left, right)]
    nothing = torch.full((len(states[0]),), -1, device=states[0].device)
    projection = project(states, [unembedding, unembedding], [(0, 1)], top_k=0, tracked=nothing[:0], next_ids=nothing)
    apart = geometry.pair_metrics(left, right)["relative_diff"]
    return {
        "relative_diff": float(apart.max()),
        "kl_div": float(projection.kl_div.max()),
        "js": float(projection.js.max()),
    }


def verdict_on_itself(found: Mapping[str, float], epsilon: float) -> str | None:
    """Why nothing that was measured can be believed, or None."""
    worst = max(found, key=lambda name: found[name])
    if found[worst] <= epsilon:
        return None
    return f"a model differs from itself: {worst} = {found[worst]:.3g}, above null_epsilon = {epsilon:g}"
