"""Designs that cannot show anything are refused; the simulation agrees with closed forms where there are any."""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest
from statsmodels.stats.power import TTestIndPower, TTestPower

from nullarm.errors import InvalidResult, StudyError, UsageError
from nullarm.stats import closed_form
from nullarm.stats.design import Design, check_design
from nullarm.stats.noise import (
    Noise,
    binomial_sd,
    noise_of_contrast,
    noise_of_replicates,
    planned_noise,
)
from nullarm.stats.power import (
    detection_probability,
    detection_thresholds,
    equivalence_probability,
    minimum_detectable_effect,
    minimum_margin,
    seeds_needed,
)

SIGMA = Noise(1.0)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize(
    ("design", "words"),
    [
        (Design(3, 1), r"cannot give a p below 0.125 \(= 1/8\), so α = 0.05 is out of reach"),
        (Design(3, 3, family=4), r"p below 0.01562 .*α = 0.05 / 4 contrasts"),
        (Design(20, 4, alpha=0.001, draws=99), r"1/\(1 \+ 99 draws\)"),
        (Design(1, 5), "1 seed"),
        (Design(4, 0), r"0 control\(s\)"),
        (Design(4, 4, alpha=0.7), "not a level"),
        (Design(4, 4, test="anova"), "'anova' is unknown"),  # type: ignore[arg-type]
    ],
)
def test_designs_that_show_nothing_are_refused(design: Design, words: str) -> None:
    with pytest.raises(StudyError, match=words):
        check_design(design)


def test_a_refusal_says_what_would_mend_it() -> None:
    with pytest.raises(StudyError, match=r"valid: 5 seeds with 1 control\(s\), or 3 seeds with 2"):
        check_design(Design(3, 1))
    check_design(Design(5, 1))
    check_design(Design(3, 2))
    with pytest.raises(StudyError, match="valid: a test by name"):
        check_design(Design(3, 1, alpha=0.9))


def test_a_t_test_has_no_least_p_value() -> None:
    assert Design(2, 1, test="paired_t").least_p == 0.0
    check_design(Design(2, 1, test="paired_t"))
    assert Design(4, 3).least_p == 1 / 256
    assert Design(4, 3, alpha=0.025).level == 0.95


@pytest.mark.parametrize("seeds", [6, 12, 20])
def test_paired_t_power_is_that_of_statsmodels(seeds: int) -> None:
    design = Design(seeds, 1, test="paired_t")
    effect = minimum_detectable_effect(design, SIGMA, rng=rng(), studies=8_000)
    oracle = TTestPower().power(effect / sqrt(2), seeds, 0.05, alternative="larger")
    assert oracle == pytest.approx(0.8, abs=0.03)  # above 0.8: the interval must agree as well
    assert closed_form.detection_power(design, SIGMA, effect) == pytest.approx(oracle)


@pytest.mark.parametrize("design", [Design(5, 4), Design(8, 3), Design(14, 2), Design(24, 4), Design(24, 4, family=5)])
def test_the_closed_form_of_the_randomisation_test_is_near_the_simulation(design: Design) -> None:
    effect = minimum_detectable_effect(design, SIGMA, rng=rng(), studies=4_000)
    assert closed_form.detection_power(design, SIGMA, effect) == pytest.approx(0.8, abs=0.05)


@pytest.mark.parametrize("seeds", [5, 12, 24])
def test_the_closed_form_of_tost_is_near_the_simulation(seeds: int) -> None:
    design = Design(seeds, 2)
    margin = minimum_margin(design, SIGMA, rng=rng(), studies=4_000)
    assert closed_form.equivalence_power_at_zero(design, SIGMA, margin) == pytest.approx(0.8, abs=0.04)


def test_power_rises_from_the_level_to_certainty() -> None:
    design = Design(5, 4)
    powers = [detection_probability(design, SIGMA, effect, rng=rng()) for effect in (0.0, 1.0, 2.0, 9.0)]
    assert powers[0] < 0.06
    assert powers == sorted(powers)
    assert powers[-1] == 1.0
    assert equivalence_probability(design, SIGMA, 0.1, rng=rng()) == 0.0


def test_effects_scale_with_the_noise_and_the_generator_decides() -> None:
    one, ten = (detection_thresholds(Design(4, 3), Noise(sd), rng=rng(), studies=50) for sd in (1.0, 10.0))
    assert ten == pytest.approx(10 * one)
    again = detection_thresholds(Design(4, 3), SIGMA, rng=rng(1), studies=50)
    assert not np.array_equal(one, again)


def test_a_threshold_is_where_the_randomisation_test_turns() -> None:
    """Exact enumeration, tested from outside: just above the threshold p is below α, just below it is not."""
    from nullarm.stats.power import _randomisation_threshold
    from nullarm.stats.randomisation import leave_one_out, within_seed_randomisation

    design = Design(3, 3)
    cells = rng().normal(size=(20, 3, 4))
    for scores, threshold in zip(cells, _randomisation_threshold(leave_one_out(cells), design, rng()), strict=True):
        for effect, detected in ((threshold + 1e-6, True), (threshold - 1e-6, False)):
            p = within_seed_randomisation(scores[:, 0] + effect, scores[:, 1:], draws=9, rng=rng()).p_greater
            assert (p < 0.05) is detected


def test_the_fewest_seeds_are_those_that_can_reach_alpha() -> None:
    assert seeds_needed(Design(2, 3), SIGMA, effect=99.0, rng=rng()) == 3  # 2 seeds give no p below 1/16


def test_the_simulation_corrects_a_closed_form_that_promises_too_much() -> None:
    design = Design(4, 4, test="paired_t")
    assert closed_form.detection_power(design, SIGMA, 1.92) > 0.8
    assert detection_probability(design, SIGMA, 1.92, rng=rng(), studies=8_000) < 0.8
    assert seeds_needed(design, SIGMA, effect=1.92, rng=rng(), studies=8_000) == 5


def test_seeds_needed_are_enough_and_one_fewer_is_not() -> None:
    seeds = seeds_needed(Design(2, 3), SIGMA, effect=1.5, margin=1.5, rng=rng())
    assert seeds is not None
    assert 5 <= seeds <= 9
    enough, fewer = (
        min(
            detection_probability(Design(s, 3), SIGMA, 1.5, rng=rng(1), studies=4_000),
            equivalence_probability(Design(s, 3), SIGMA, 1.5, rng=rng(2), studies=4_000),
        )
        for s in (seeds, seeds - 1)
    )
    assert enough > 0.77
    assert fewer < 0.83
    assert fewer < enough


@pytest.mark.parametrize("effect", [0.62, 0.8, 1.1, 1.6, 2.5, 4.0])
def test_seeds_needed_end_even_where_the_simulation_and_the_closed_form_disagree(effect: float) -> None:
    few = [
        seeds_needed(Design(2, 3), Noise(1.0, item_effect_se=floor), effect=effect, rng=rng(3), studies=100) or 999
        for floor in (0.0, effect / 6, effect / 3.2)
    ]
    assert few == sorted(few)
    assert 3 <= few[0] <= 30


def test_many_seeds_come_from_the_closed_form_and_items_can_be_the_limit() -> None:
    many = seeds_needed(Design(2, 3), SIGMA, effect=0.3, rng=rng())
    assert many is not None
    assert 80 < many < 130
    assert seeds_needed(Design(2, 3), SIGMA, effect=0.001, rng=rng()) is None
    assert seeds_needed(Design(2, 3), Noise(1.0, item_effect_se=0.2), effect=0.3, rng=rng()) is None
    assert seeds_needed(Design(2, 3), Noise(0.0), effect=0.3, margin=0.3, rng=rng()) == 3  # 2 seeds cannot reach α


@pytest.mark.parametrize("asked", [{}, {"effect": 0.0}, {"effect": 1.0, "margin": -1.0}])
def test_seeds_are_needed_for_something(asked: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="effect or a margin above 0"):
        seeds_needed(Design(2, 3), SIGMA, rng=rng(), **asked)  # type: ignore[arg-type]


def test_a_power_is_a_probability() -> None:
    with pytest.raises(UsageError, match="not between 0 and 1"):
        minimum_detectable_effect(Design(4, 3), SIGMA, rng=rng(), power=1.0)


def test_two_sample_figures_are_those_of_statsmodels() -> None:
    oracle = TTestIndPower()
    assert closed_form.two_sample_power(6, 2.0, 3.0, alpha=0.05) == pytest.approx(oracle.power(1.5, 6, 0.05), abs=1e-4)
    effect = closed_form.two_sample_mde(6, 2.0, alpha=0.05, power=0.8)
    assert effect == pytest.approx(2 * oracle.solve_power(nobs1=6, alpha=0.05, power=0.8), rel=1e-3)
    n = closed_form.two_sample_n(2.0, effect=1.0, margin=None, alpha=0.05, power=0.8, most=100)
    assert n == int(np.ceil(oracle.solve_power(effect_size=0.5, alpha=0.05, power=0.8)))
    both = closed_form.two_sample_n(2.0, effect=1.0, margin=1.0, alpha=0.05, power=0.8, most=100)
    assert both is not None
    assert n is not None
    assert both > n
    assert closed_form.two_sample_n(2.0, effect=1.0, margin=None, alpha=0.05, power=0.8, most=9) is None


def test_power_is_certain_where_scipy_answers_nan() -> None:
    assert closed_form.two_sample_power(3, 1.0, 50 * sqrt(2 / 3), alpha=0.1) == 1.0


def test_planned_noise_adds_the_items() -> None:
    noise = planned_noise(0.01, item_sd=binomial_sd(0.5), n_items=2_500)
    assert noise.cell_sd == pytest.approx(sqrt(2) * 0.01)
    assert noise.item_effect_se == 0.0


def test_measured_noise_is_that_of_the_world() -> None:
    draws = rng().normal(size=(400, 3, 1)) + 2 * rng(1).normal(size=(400, 3, 25)) + 5 * rng(2).normal(size=(400, 1, 25))
    assert noise_of_replicates(draws).cell_sd == pytest.approx(sqrt(1 + 4 / 25), rel=0.05)
    cells = rng(3).normal(size=(400, 4)) + 9 * rng(4).normal(size=(400, 1))
    assert noise_of_contrast(cells[:, 0], cells[:, 1:], item_effect_se=0.1).cell_sd == pytest.approx(1, rel=0.05)


def test_impossible_noise_is_refused() -> None:
    for broken in (-1.0, float("nan")):
        with pytest.raises(InvalidResult, match="negative or not finite"):
            Noise(broken)
    with pytest.raises(InvalidResult, match="needs items"):
        planned_noise(0.1, item_sd=0.5, n_items=0)
    with pytest.raises(InvalidResult, match="standard deviation is negative"):
        planned_noise(-0.1, item_sd=0.5, n_items=3)
    with pytest.raises(InvalidResult, match="not between 0 and 1"):
        binomial_sd(1.5)
    with pytest.raises(InvalidResult, match="needs replicates"):
        noise_of_replicates(np.ones((3, 1, 5)))
