"""Effects as large as the planner promised to find are found as often as it promised, within 5 points."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np
import pytest
from simulated_studies import World, judged, rate

from nullarm.stats.design import Design, TestName
from nullarm.stats.evidence import Rule, equivalence_evidence, non_inferiority_evidence, superiority_evidence
from nullarm.stats.noise import Noise, planned_noise
from nullarm.stats.power import (
    detection_probability,
    equivalence_probability,
    minimum_detectable_effect,
    minimum_margin,
)
from nullarm.stats.verdict import Evidence, Verdict

DETECTED = Verdict.CONFIRMED, Verdict.DETECTED_BELOW_MARGIN
POINTS = 0.05


@dataclass(frozen=True)
class Promise:
    """A world, and the test that the planner was asked about."""

    world: World
    test: TestName = "within_seed_randomisation"
    alpha: float = 0.05

    @property
    def design(self) -> Design:
        """The design as the planner sees it."""
        return Design(self.world.seeds, self.world.controls, self.alpha, self.test, draws=999)

    @property
    def noise(self) -> Noise:
        """The noise as the planner sees it."""
        world = self.world
        cell = planned_noise(world.arm_sd, item_sd=world.item_sd, n_items=world.items).cell_sd
        return Noise(cell, world.item_effect_sd / sqrt(world.items))

    def detected(self, effect: float) -> float:
        """Share of simulated studies in which `effect` is detected."""
        world = World(**{**self.world.__dict__, "effect": effect})
        rule = Rule(self.alpha, margin=0.0, resamples=300, draws=999)

        def gather(rng: np.random.Generator) -> Evidence:
            return superiority_evidence("planted", *world.draw(rng), rule, test=self.test, rng=rng)

        return rate(judged(gather, np.random.default_rng(11)), *DETECTED)


PROMISES = {
    "3 seeds, 3 controls": Promise(World(3, 3)),
    "5 seeds, 4 controls": Promise(World(5, 4)),
    "10 seeds, 2 controls, drawn": Promise(World(10, 2)),
    "12 seeds, 1 control": Promise(World(12, 1)),
    "strict level": Promise(World(6, 4), alpha=0.01),
    "items with effects of their own": Promise(World(6, 3, items=30, item_effect_sd=2.0)),
    "paired t, 5 seeds": Promise(World(5, 1), "paired_t"),
}


@pytest.mark.parametrize("promise", PROMISES.values(), ids=PROMISES)
def test_the_minimum_detectable_effect_is_found_with_the_power_promised(promise: Promise) -> None:
    effect = minimum_detectable_effect(promise.design, promise.noise, rng=np.random.default_rng(10), studies=4_000)
    assert promise.detected(effect) == pytest.approx(0.8, abs=POINTS)


def test_small_effects_are_found_as_seldom_as_promised() -> None:
    promise = PROMISES["5 seeds, 4 controls"]
    promised = detection_probability(promise.design, promise.noise, 0.8, rng=np.random.default_rng(12), studies=4_000)
    assert 0.2 < promised < 0.6
    assert promise.detected(0.8) == pytest.approx(promised, abs=POINTS)


@pytest.mark.parametrize("world", [World(4, 2), World(8, 1), World(6, 3, items=30, item_effect_sd=2.0)])
def test_a_null_is_called_equivalent_with_the_power_promised(world: World) -> None:
    promise = Promise(world, "paired_t")
    margin = minimum_margin(promise.design, promise.noise, rng=np.random.default_rng(13), studies=4_000)
    again = equivalence_probability(promise.design, promise.noise, margin, rng=np.random.default_rng(14))
    assert again == pytest.approx(0.8, abs=POINTS)
    rule = Rule(0.05, margin=margin, resamples=300)

    def gather(rng: np.random.Generator) -> Evidence:
        return equivalence_evidence("null", *world.draw(rng), rule, rng=rng)

    assert rate(judged(gather, np.random.default_rng(15)), Verdict.EQUIVALENT) == pytest.approx(0.8, abs=POINTS)


def test_an_equal_treatment_is_cleared_with_the_power_promised() -> None:
    promise = Promise(World(6, 1), "paired_t")
    margin = minimum_detectable_effect(promise.design, promise.noise, rng=np.random.default_rng(16), studies=4_000)
    rule = Rule(0.05, margin=margin, resamples=300)

    def gather(rng: np.random.Generator) -> Evidence:
        return non_inferiority_evidence("equal", *promise.world.draw(rng), rule, rng=rng)

    assert rate(judged(gather, np.random.default_rng(17)), Verdict.CONFIRMED) == pytest.approx(0.8, abs=POINTS)
