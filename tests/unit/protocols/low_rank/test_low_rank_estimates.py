"""What cells of a compression study take of a machine."""

from __future__ import annotations

from dataclasses import replace

import pytest
from low_rank_studies import low_rank_study

from nullarm.protocols.low_rank.estimates import EIGH_FLOPS, Estimates
from nullarm.protocols.low_rank.parameters import LowRankParameters, Sweep
from nullarm.protocols.low_rank.sizes import Sizes
from nullarm.protocols.low_rank.slots import SLOTS, groups
from nullarm.sites.devices import DEVICES

H200 = DEVICES["h200"]


def parameters(model: str = "builtin:world") -> LowRankParameters:
    return LowRankParameters.model_validate(low_rank_study(model=model).parameters)


def test_the_factors_are_held_in_memory() -> None:
    asked = parameters()
    half, sizes = Estimates(asked, H200), Sizes(asked)
    less = asked.compression["compress"].model_copy(
        update={"budget": asked.compression["compress"].budget.model_copy(update={"keep": 0.25})}  # type: ignore[union-attr]
    )
    other = asked.model_copy(update={"compression": {**asked.compression, "compress": less}})
    difference = sizes.bytes("compress") - Sizes(other).bytes("compress")
    assert difference > 0
    memory = [Estimates(p, H200).compress(Sizes(p), "compress").memory_bytes for p in (asked, other)]
    assert memory[0] - memory[1] == difference
    assert half.compress(sizes, "compress").disk_bytes == sizes.bytes("compress")


def test_decompositions_take_the_time_that_float64_takes() -> None:
    asked = parameters()
    slow = replace(H200, fp64_flops_per_s=H200.fp64_flops_per_s / 25)
    cubes = sum(group.max_rank**3 for group in groups(asked.model, SLOTS, shared=False))
    seconds = [Estimates(asked, device).spectra().seconds for device in (H200, slow)]
    assert seconds[1] - seconds[0] == pytest.approx(24 * 2 * 10 * EIGH_FLOPS * cubes / H200.fp64_flops_per_s, rel=1e-6)


def test_every_rank_of_a_sweep_is_compared_in_float64() -> None:
    asked, slow = parameters(), replace(H200, fp64_flops_per_s=1e6)
    base = {"methods": [{"kind": "svd"}], "slots": ["q"], "windows": 1}
    few, more = (Sweep.model_validate({**base, "keep": keep}) for keep in ([0.5], [0.5, 0.25, 0.125]))

    def seconds(sweep: Sweep, estimates: Estimates) -> float:
        return estimates.sweep(Sizes(asked), sweep).seconds

    slower = [seconds(sweep, Estimates(asked, slow)) - seconds(sweep, Estimates(asked, H200)) for sweep in (few, more)]
    found = groups(asked.model, ["q"], shared=False)
    flops = sum(4 * group.in_features * group.dense_numbers for group in found)
    assert slower[1] - slower[0] == pytest.approx(2 * flops / 1e6, rel=1e-3)
