"""Studies without an effect, and with an effect exactly at the margin: no claim may be false more often than α."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from simulated_studies import World, at_most, judged, rate

from nullarm.stats.design import TestName
from nullarm.stats.evidence import Rule, equivalence_evidence, non_inferiority_evidence, superiority_evidence
from nullarm.stats.verdict import Evidence, Verdict

ALPHA = 0.05
RULE = Rule(ALPHA, margin=0.0, resamples=200, draws=999)
DETECTED = Verdict.CONFIRMED, Verdict.DETECTED_BELOW_MARGIN

NULLS = {
    "3 seeds, 3 controls": World(3, 3),
    "5 seeds, 4 controls": World(5, 4),
    "10 seeds, 1 control": World(10, 1),
    "8 seeds, 8 controls, drawn": World(8, 8),
    "heavy tails": World(5, 3, heavy=True),
}


def superiority(world: World, test: TestName, rule: Rule, rng: np.random.Generator) -> Evidence:
    treated, controls = world.draw(rng)
    return superiority_evidence("null", treated, controls, rule, test=test, rng=rng)


@pytest.mark.parametrize("world", NULLS.values(), ids=NULLS)
@pytest.mark.parametrize("test", ["within_seed_randomisation", "paired_t"])
def test_no_effect_is_seldom_found(world: World, test: TestName) -> None:
    judgements = judged(partial(superiority, world, test, RULE), np.random.default_rng(1))
    assert rate(judgements, *DETECTED) <= at_most(ALPHA)
    assert rate(judgements, Verdict.HARMFUL) <= at_most(ALPHA)


def test_the_p_value_alone_carries_the_level() -> None:
    judgements = judged(partial(superiority, World(5, 4), "within_seed_randomisation", RULE), np.random.default_rng(2))
    smaller = np.mean([judgement.p is not None and judgement.p < ALPHA for judgement in judgements])
    assert 0.03 < smaller <= at_most(ALPHA)


def test_right_or_wrong_items_keep_the_level() -> None:
    difficulty = np.linspace(0.1, 0.9, 30)

    def gather(rng: np.random.Generator) -> Evidence:
        right = (rng.random((4, 4, 30)) < difficulty).astype(float)
        return superiority_evidence("null", right[:, 0], right[:, 1:], RULE, test="within_seed_randomisation", rng=rng)

    judgements = judged(gather, np.random.default_rng(3))
    assert rate(judgements, *DETECTED) <= at_most(ALPHA)
    assert rate(judgements, Verdict.HARMFUL) <= at_most(ALPHA)


def test_effects_that_differ_between_seeds_keep_the_level() -> None:
    """The mean effect is 0, but the treatment is not exchangeable with its controls: the interval carries the level."""
    world = World(5, 4, effect_sd=2.0, arm_sd=0.5, item_sd=1.0)
    judgements = judged(partial(superiority, world, "within_seed_randomisation", RULE), np.random.default_rng(7))
    p_alone = np.mean([judgement.p is not None and judgement.p < ALPHA for judgement in judgements])
    assert p_alone > 0.1  # what the interval has to mend
    assert rate(judgements, *DETECTED) <= at_most(ALPHA)


def test_items_with_effects_of_their_own_keep_the_level() -> None:
    """The mean effect over all items is 0, but the sampled items' is not: only the item part of the interval knows."""
    world = World(6, 3, items=15, item_effect_sd=2.0, arm_sd=0.3, item_sd=1.0)
    judgements = judged(partial(superiority, world, "within_seed_randomisation", RULE), np.random.default_rng(4))
    p_alone = np.mean([judgement.p is not None and judgement.p < ALPHA for judgement in judgements])
    assert p_alone > 0.15  # what the interval has to mend
    assert rate(judgements, *DETECTED) <= at_most(ALPHA)


AT_THE_MARGIN = {
    "3 seeds": World(3, 3, effect=3.0),
    "5 seeds, negative": World(5, 2, effect=-3.0),
    "10 seeds, seeds differ": World(10, 1, effect=3.0, effect_sd=1.0),
    "6 seeds, items differ": World(6, 3, items=15, effect=3.0, item_effect_sd=2.0, arm_sd=0.3, item_sd=1.0),
}


@pytest.mark.parametrize("world", AT_THE_MARGIN.values(), ids=AT_THE_MARGIN)
def test_a_difference_of_the_margin_is_seldom_called_equivalent(world: World) -> None:
    rule = replace(RULE, margin=3.0)

    def gather(rng: np.random.Generator) -> Evidence:
        return equivalence_evidence("boundary", *world.draw(rng), rule, rng=rng)

    judgements = judged(gather, np.random.default_rng(5))
    assert rate(judgements, Verdict.EQUIVALENT) <= at_most(ALPHA)
    assert rate(judgements, Verdict.EQUIVALENT) > 0  # the boundary is where errors happen at all


def test_a_shortfall_of_the_margin_is_seldom_cleared() -> None:
    world, rule = World(5, 1, effect=-2.0), replace(RULE, margin=2.0)

    def gather(rng: np.random.Generator) -> Evidence:
        return non_inferiority_evidence("boundary", *world.draw(rng), rule, rng=rng)

    judgements = judged(gather, np.random.default_rng(6))
    assert 0.01 < rate(judgements, Verdict.CONFIRMED) <= at_most(ALPHA)
    assert rate(judgements, Verdict.HARMFUL) <= at_most(ALPHA)
