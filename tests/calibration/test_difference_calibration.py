"""Differences whose direction is not declared: false claims at most α, true ones with the power that was promised."""

from __future__ import annotations

import numpy as np
import pytest
from simulated_studies import World, at_most, judged, rate

from nullarm.stats.design import Design
from nullarm.stats.evidence import Rule, by_item, difference_evidence
from nullarm.stats.forecast import forecast
from nullarm.stats.noise import Noise
from nullarm.stats.verdict import Evidence, Unit, Verdict

ALPHA = 0.05
POINTS = 0.05


def blocks(n: int, effect: float = 0.0, *, sd: float = 0.02, heavy: bool = False) -> World:
    """Log ratios of `n` ABBA blocks: a block's weather is shared, its two runs of each arm are not."""
    return World(seeds=n, controls=1, items=2, effect=effect, arm_sd=0.0, item_sd=sd, heavy=heavy)


def evidence(world: World, margin: float, unit: Unit, rng: np.random.Generator) -> Evidence:
    """Of one study, each unit's items averaged first: the runs of a block, or the seeds of an item."""
    treated, controls = world.draw(rng)
    if unit == "blocks":
        treated, controls = treated.mean(axis=1, keepdims=True), controls.mean(axis=2, keepdims=True)
    elif unit == "items":
        treated, controls = by_item(treated, controls)
    rule = Rule(ALPHA, margin=margin, resamples=200, unit=unit)
    return difference_evidence("x", treated, controls, rule, rng=rng)


NULLS: dict[str, tuple[World, Unit]] = {
    "4 blocks": (blocks(4), "blocks"),
    "10 blocks": (blocks(10), "blocks"),
    "10 blocks, heavy tails": (blocks(10, heavy=True), "blocks"),
    "40 items of one seed": (World(1, 1, items=40, arm_sd=0.0), "items"),
    "5 seeds": (World(5, 1), "seeds"),
}


@pytest.mark.parametrize(("world", "unit"), NULLS.values(), ids=NULLS)
def test_no_difference_is_seldom_found(world: World, unit: Unit) -> None:
    judgements = judged(lambda rng: evidence(world, 0.0, unit, rng), np.random.default_rng(31))
    assert 0.01 < rate(judgements, Verdict.DIFFERENT) <= at_most(ALPHA)


@pytest.mark.parametrize("effect", [0.01, -0.01])
@pytest.mark.parametrize("n", [4, 10, 30])
def test_a_difference_of_the_margin_is_seldom_called_equivalent(n: int, effect: float) -> None:
    world = blocks(n, effect, sd=0.003)
    judgements = judged(lambda rng: evidence(world, 0.01, "blocks", rng), np.random.default_rng(32))
    assert 0.01 < rate(judgements, Verdict.EQUIVALENT) <= at_most(ALPHA)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("n", [5, 10, 24])
def test_the_minimum_detectable_difference_is_found_with_the_power_promised(n: int, sign: int) -> None:
    planned = _planned(n, margin=0.0)
    assert planned.mde is not None
    world = blocks(n, sign * planned.mde)
    judgements = judged(lambda rng: evidence(world, 0.0, "blocks", rng), np.random.default_rng(33))
    assert rate(judgements, Verdict.DIFFERENT) == pytest.approx(0.8, abs=POINTS)


def test_the_blocks_needed_settle_it_both_ways() -> None:
    margin = 0.03
    needed = _planned(6, margin=margin).n_needed
    assert needed is not None
    found = judged(lambda rng: evidence(blocks(needed, margin), margin, "blocks", rng), np.random.default_rng(34))
    null = judged(lambda rng: evidence(blocks(needed), margin, "blocks", rng), np.random.default_rng(35))
    assert rate(found, Verdict.DIFFERENT) >= 0.8 - POINTS
    assert rate(null, Verdict.EQUIVALENT) >= 0.8 - POINTS
    assert min(rate(found, Verdict.DIFFERENT), rate(null, Verdict.EQUIVALENT)) <= 0.8 + POINTS + 0.05


def _planned(n: int, margin: float) -> Evidence:
    """What the forecast says of a study of `n` blocks whose noise is known."""
    blank = Evidence(
        "x", "difference", "t", ALPHA, margin, unit="blocks", n_seeds=n, estimate=0.01,
        design=Design(n, 1, ALPHA, "paired_t"), noise=Noise(blocks(n).cell_sd),
    )  # fmt: skip
    return forecast(blank, rng=np.random.default_rng(36))
