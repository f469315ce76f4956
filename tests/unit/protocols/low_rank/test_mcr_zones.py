from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nullarm.errors import InvalidResult
from nullarm.protocols.low_rank.allocation.mcr import ZONES, zones

M, C, R = ZONES


def test_compress_grows_from_the_least_in_both_directions() -> None:
    # smoothed: 9, 9, 6.33, 3.67, 1, 1.33, 4, 6.67, 9
    assert zones([9, 9, 9, 1, 1, 1, 2, 9, 9], 1.15, 1.5) == [M, M, M, M, C, C, R, R, R]
    assert zones([9, 9, 9, 1, 1, 1, 2, 9, 9], 1.15, 4.0) == [M, M, M, C, C, C, C, R, R]


def test_a_second_dip_behind_a_rise_is_not_compressed() -> None:
    assert zones([1, 1, 1, 9, 9, 9, 1.1, 1.1, 1.1], 1.15, 1.5) == [C, C, R, R, R, R, R, R, R]


def test_where_variance_grows_with_depth_there_is_no_mix() -> None:
    found = zones([2.0**layer for layer in range(8)], 1.15, 1.5)
    assert found == [C, R, R, R, R, R, R, R]


def test_one_layer_that_stands_out_is_smoothed() -> None:
    """(1 + 1 + 1.3) / 3 = 1.1 times the least."""
    assert zones([1, 1, 1, 1.3, 1, 1, 1], 1.15, 1.5) is None


@pytest.mark.parametrize("variance", [[3.0], [2.0, 2.0, 2.0], [0.0, 0.0]])
def test_equal_variances_are_flat_whatever_the_bound(variance: list[float]) -> None:
    assert zones(variance, 1.0, 1.5) is None


@given(st.lists(st.floats(0, 100), min_size=1, max_size=20), st.floats(1, 3), st.floats(1, 3))
def test_zones_follow_one_another(variance: list[float], flat_below: float, factor: float) -> None:
    found = zones(variance, flat_below, factor)
    assert found is None or (found == sorted(found, key=ZONES.index) and C in found and len(found) == len(variance))


@pytest.mark.parametrize("variance", [[1.0, math.nan], [1.0, -1.0], [math.inf, 1.0], []])
def test_what_is_no_variance_is_refused(variance: list[float]) -> None:
    with pytest.raises(InvalidResult, match="variances of the layers are not numbers ≥ 0"):
        zones(variance, 1.15, 1.5)
