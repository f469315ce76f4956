"""The two-way bootstrap against scipy where it is one-way, and against the closed-form variance where it is not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from nullarm.errors import InvalidResult
from nullarm.stats import bootstrap
from nullarm.stats.bootstrap import Bootstrap, IntervalMethod, few_units_stretch, two_way_bootstrap

stats: Any = scipy.stats


def drawn(differences: object, seed: int = 0, resamples: int = 4_000, clusters: object = None) -> Bootstrap:
    rng = np.random.default_rng(seed)
    return two_way_bootstrap(
        np.asarray(differences),
        clusters=None if clusters is None else np.asarray(clusters),
        resamples=resamples,
        rng=rng,
    )


@pytest.mark.parametrize(("method", "scipy_method"), [("percentile", "percentile"), ("bca", "BCa")])
def test_one_seed_is_scipys_one_way_interval_on_the_same_draws(method: IntervalMethod, scipy_method: str) -> None:
    items = np.random.default_rng(1).exponential(size=40)
    ours = drawn(items[None, :])
    interval = ours.interval(0.9, method)
    oracle = stats.bootstrap(
        (items,),
        np.mean,
        n_resamples=0,
        confidence_level=0.9,
        method=scipy_method,
        bootstrap_result=SimpleNamespace(bootstrap_distribution=ours.estimate + ours.item_part),
    ).confidence_interval
    assert (interval.low, interval.high) == pytest.approx(tuple(oracle), abs=1e-10)
    assert interval.method == f"item bootstrap, {method}"


def test_one_seed_is_scipys_one_way_interval_on_draws_of_its_own() -> None:
    items = (np.random.default_rng(2).random(200) < 0.3).astype(float)
    ours = drawn(items[None, :], resamples=20_000).interval(0.95)
    oracle = stats.bootstrap(
        (items,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(3)
    ).confidence_interval
    assert (ours.low, ours.high) == pytest.approx(tuple(oracle), abs=0.004)


def test_one_item_is_scipys_one_way_distribution_of_seeds() -> None:
    seeds = np.random.default_rng(4).normal(size=12)
    ours = drawn(seeds[:, None], resamples=20_000)
    oracle = stats.bootstrap((seeds,), np.mean, n_resamples=20_000, rng=np.random.default_rng(5))
    assert not ours.item_part.any()
    assert ours.seed_part.std() == pytest.approx(oracle.standard_error, rel=0.03)


def test_a_stretched_interval_of_seeds_is_as_wide_as_the_t_interval() -> None:
    seeds = np.random.default_rng(6).normal(size=15)
    ours = drawn(seeds[:, None], resamples=50_000).interval(0.9)
    oracle = stats.ttest_1samp(seeds, 0).confidence_interval(0.9)
    assert ours.high - ours.low == pytest.approx(oracle.high - oracle.low, rel=0.04)
    assert few_units_stretch(3, 0.9) == pytest.approx(np.sqrt(3 / 2) * 2.919986 / 1.644854)
    assert few_units_stretch(1, 0.9) == 1.0


def test_variance_of_both_parts_is_that_of_the_two_way_table() -> None:
    """Var = MSA/(S N) from seeds, which holds the residual, plus (MSB − MSE)/(S N) from the items' own effects."""
    rng = np.random.default_rng(7)
    s, n = 6, 80
    matrix = rng.normal(size=(s, 1)) + rng.normal(size=(1, n)) + rng.normal(size=(s, n))
    rows, columns, mean = matrix.mean(axis=1), matrix.mean(axis=0), matrix.mean()
    msa = n * rows.var(ddof=1)
    msb = s * columns.var(ddof=1)
    residual = matrix - rows[:, None] - columns + mean
    mse = (residual**2).sum() / ((s - 1) * (n - 1))
    ours = drawn(matrix, resamples=40_000)
    assert ours.seed_part.var() == pytest.approx(msa / (s * n) * (s - 1) / s, rel=0.03)
    assert ours.item_part.var() == pytest.approx((msb - mse) / (s * n) * (n - 1) / n, rel=0.03)
    assert ours.item_se**2 == pytest.approx((msb - mse) / (s * n) * (n - 1) / n)


def test_items_without_effects_of_their_own_add_nothing() -> None:
    matrix = np.random.default_rng(8).normal(size=(4, 300))
    matrix -= matrix.mean(axis=0)
    ours = drawn(matrix + np.arange(4)[:, None])
    assert not ours.item_part.any()
    assert ours.item_se == 0.0
    assert ours.interval(0.9).method == "seed and item bootstrap, percentile"


def test_clusters_are_drawn_whole() -> None:
    rng = np.random.default_rng(9)
    clusters = np.repeat(["a", "b", "c", "d", "e", "f"], [5, 9, 2, 7, 12, 4])
    items = rng.normal(size=len(clusters))
    ours = drawn(items[None, :], resamples=30_000, clusters=clusters)

    def ratio(chosen: np.ndarray, axis: int = -1) -> np.ndarray:
        picked = np.take(chosen, 0, axis=axis) if chosen.ndim == 0 else chosen
        return np.asarray(sums[picked.astype(int)].sum(axis=axis) / sizes[picked.astype(int)].sum(axis=axis))

    names = np.unique(clusters)
    sums = np.array([items[clusters == name].sum() for name in names])
    sizes = np.array([(clusters == name).sum() for name in names])
    oracle = stats.bootstrap((np.arange(6),), ratio, n_resamples=30_000, rng=rng, method="percentile")
    assert ours.item_part.std() == pytest.approx(oracle.standard_error, rel=0.03)
    ends = ours.interval(0.95)
    assert (ends.low, ends.high) == pytest.approx(tuple(oracle.confidence_interval), abs=0.03)


def test_copied_items_in_clusters_are_no_new_evidence() -> None:
    items = np.random.default_rng(10).normal(size=(3, 30)) + np.random.default_rng(11).normal(size=30)
    copied = np.repeat(items, 4, axis=1)
    plain, clustered = drawn(items), drawn(copied, clusters=np.repeat(np.arange(30), 4))
    assert clustered.item_se == pytest.approx(plain.item_se)
    assert drawn(copied).item_se < 0.8 * plain.item_se


def test_memory_is_bounded_without_changing_the_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    items = np.random.default_rng(12).normal(size=(1, 50))
    whole = drawn(items)
    monkeypatch.setattr(bootstrap, "_CHUNK", 777)
    assert drawn(items).item_part == pytest.approx(whole.item_part)


@given(st.floats(-5, 5), st.floats(0.1, 10), st.sampled_from(["percentile", "bca"]))
@settings(max_examples=25, deadline=None)
def test_intervals_move_and_scale_with_the_scores(shift: float, scale: float, method: IntervalMethod) -> None:
    matrix = np.random.default_rng(13).normal(size=(4, 9))
    plain = drawn(matrix, resamples=300).interval(0.9, method)
    moved = drawn(matrix * scale + shift, resamples=300).interval(0.9, method)
    assert moved.low == pytest.approx(plain.low * scale + shift, abs=1e-6 * scale)
    assert moved.high == pytest.approx(plain.high * scale + shift, abs=1e-6 * scale)


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_constant_differences_give_a_point(method: IntervalMethod) -> None:
    interval = drawn(np.full((3, 5), 0.25), resamples=50).interval(0.9, method)
    assert (interval.low, interval.high) == (0.25, 0.25)


def test_higher_levels_are_wider() -> None:
    ours = drawn(np.random.default_rng(14).normal(size=(5, 20)))
    assert ours.interval(0.8).inside(1e9)
    assert ours.interval(0.99).high - ours.interval(0.99).low > ours.interval(0.8).high - ours.interval(0.8).low


def test_bad_input_is_refused_in_words() -> None:
    with pytest.raises(InvalidResult, match="nothing to resample"):
        drawn(np.empty((3, 0)))
    with pytest.raises(InvalidResult, match="clusters and items do not line up"):
        drawn(np.ones((2, 3)), clusters=[0, 1])
    with pytest.raises(InvalidResult, match="differences holds NaN"):
        drawn([[0.0, np.inf]])
