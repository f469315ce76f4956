"""Spread of two arms: Brown–Forsythe against scipy, ratios, and what must not change them."""

from __future__ import annotations

import json
from math import inf

import numpy as np
import pytest
from scipy import stats

from nullarm.errors import InvalidResult
from nullarm.stats.contamination import compare_spread

CLEAN = [39.2, 39.3, 39.3, 39.3], [39.3, 39.2, 39.2, 39.2]
CONTAMINATED = [37.9, 38.0, 37.9, 37.9], [37.9, 38.0, 36.7, 35.8]


def test_golden_spreads() -> None:
    dirty = compare_spread(CONTAMINATED[1], CONTAMINATED[0])
    assert round(dirty.variance_ratio) == 440
    assert round(dirty.sd_ratio) == 21
    assert dirty.p is not None
    assert round(dirty.p, 3) == 0.009
    assert dirty.slowest_mean == pytest.approx(37.1)
    clean = compare_spread(CLEAN[1], CLEAN[0])
    assert clean.variance_ratio == pytest.approx(1)
    assert clean.p == pytest.approx(1, abs=0.01)


def test_brown_forsythe_is_scipys_on_speeds_over_their_median() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(40, 1, 9), rng.normal(60, 3, 12)
    relative = first / np.median(first), second / np.median(second)
    spread = compare_spread(first, second)
    assert spread.p == pytest.approx(stats.levene(*relative, center="median").pvalue)
    assert spread.variance_ratio == pytest.approx(second.var(ddof=1) / first.var(ddof=1))
    assert spread.relative_variance_ratio == pytest.approx(relative[1].var(ddof=1) / relative[0].var(ddof=1))


@pytest.mark.parametrize("factor", [0.1, 0.97, 3.0])
def test_how_fast_an_arm_is_does_not_matter(factor: float) -> None:
    rng = np.random.default_rng(1)
    first, second = rng.normal(40, 1, 8), rng.normal(40, 2, 8)
    before, after = compare_spread(first, second), compare_spread(factor * first, second)
    assert after.p == pytest.approx(before.p)
    assert after.relative_variance_ratio == pytest.approx(before.relative_variance_ratio)
    assert after.variance_ratio != pytest.approx(before.variance_ratio)  # what the source looks at does change


def test_which_arm_comes_first_does_not_matter() -> None:
    there, back = compare_spread(*CONTAMINATED), compare_spread(*CONTAMINATED[::-1])
    assert there.variance_ratio == back.variance_ratio
    assert there.p == pytest.approx(back.p)


@pytest.mark.parametrize(
    ("first", "second", "ratio"),
    [
        ([39.3] * 4, [39.3] * 4, 1.0),  # nothing varies
        ([39.3] * 4, [39.2, 39.2, 39.3, 39.3], inf),  # rounding left two values: every deviation is the same
        ([39.3, 39.4], [39.3, 41.3], 400.0),  # with two runs both deviations of an arm are equal
    ],
)
def test_brown_forsythe_is_none_where_it_is_undefined(first: list[float], second: list[float], ratio: float) -> None:
    spread = compare_spread(first, second)
    assert spread.p is None
    assert spread.variance_ratio == pytest.approx(ratio)
    data = json.loads(json.dumps(spread.to_json(), allow_nan=False))
    assert data["p_spread"] is None
    assert (data["variance_ratio"] is None) == (ratio == inf)


def test_one_run_has_no_spread() -> None:
    with pytest.raises(InvalidResult, match=r"at least 2 runs of each arm; got \(1, 2\)"):
        compare_spread([1.0], [1.0, 2.0])
    with pytest.raises(InvalidResult, match="a speed is not above 0"):
        compare_spread([1.0, -1.0], [1.0, 2.0])
