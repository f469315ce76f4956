"""A 90 % interval covers the truth in 90 % of studies; the one case where it falls short is written down."""

from __future__ import annotations

import numpy as np
import pytest
from simulated_studies import STUDIES, World

from nullarm.stats.bootstrap import two_way_bootstrap

WORLDS = {
    "residual, 3 seeds": World(3, 1, arm_sd=0.0),
    "residual, 5 seeds": World(5, 1, arm_sd=0.0),
    "retraining, 10 seeds": World(10, 1),
    "items' own effects, 5 seeds": World(5, 1, arm_sd=0.1, item_sd=1.0, item_effect_sd=2.0),
    "everything, 6 seeds": World(6, 3, arm_sd=0.3, item_sd=1.0, item_effect_sd=1.0, effect_sd=0.3),
}


def covered(world: World, seed: int) -> float:
    rng, hits = np.random.default_rng(seed), 0
    for _ in range(STUDIES):
        treated, controls = world.draw(rng)
        interval = two_way_bootstrap(treated - controls.mean(axis=1), resamples=300, rng=rng).interval(0.9)
        hits += interval.low < world.effect < interval.high
    return hits / STUDIES


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
def test_intervals_cover_what_they_say(world: World) -> None:
    assert covered(world, seed=21) == pytest.approx(0.9, abs=0.03)


def test_three_seeds_of_pure_retraining_noise_fall_short_by_as_much_as_the_docstring_says() -> None:
    assert covered(World(3, 1, arm_sd=1.0, item_sd=0.1), seed=21) == pytest.approx(0.87, abs=0.02)


def test_without_the_stretch_few_seeds_would_not_be_covered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nullarm.stats.bootstrap.few_units_stretch", lambda units, level: 1.0)
    assert covered(WORLDS["residual, 3 seeds"], seed=22) < 0.75
