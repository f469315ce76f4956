from __future__ import annotations

import math

import numpy as np
import pytest

from nullarm.stats.spectrum import effective_rank, energy_rank, energy_share, frobenius_norm, stable_rank


def test_a_flat_spectrum_uses_all_of_its_rank() -> None:
    flat = np.full(8, 0.3)
    assert stable_rank(flat) == pytest.approx(8)
    assert effective_rank(flat) == pytest.approx(8)
    assert frobenius_norm(flat) == pytest.approx(0.3 * math.sqrt(8))


def test_one_direction_uses_one() -> None:
    assert stable_rank([2.0, 0.0]) == 1.0
    assert effective_rank([2.0, 0.0]) == pytest.approx(1.0)
    assert energy_rank([2.0, 0.0], 0.99) == 1


def test_values_by_hand() -> None:
    sigma = [3.0, 2.0, 1.0]
    assert stable_rank(sigma) == pytest.approx(14 / 9)
    p = np.array([3, 2, 1]) / 6
    assert effective_rank(sigma) == pytest.approx(math.exp(-float((p * np.log(p)).sum())))
    assert [energy_rank(sigma, t) for t in (0.5, 9 / 14, 0.7, 13 / 14, 0.95, 1.0)] == [1, 1, 2, 2, 3, 3]
    assert [energy_share(sigma, k) for k in (0, 1, 2, 3, 9)] == pytest.approx([0, 9 / 14, 13 / 14, 1, 1])


@pytest.mark.parametrize("n", [3, 7, 10, 20, 100, 1000])
def test_nine_tenths_of_equal_values_hold_ninety_percent(n: int) -> None:
    assert energy_rank(np.full(n, 0.1), 0.9) == math.ceil(9 * n / 10)


def test_a_zero_matrix_has_no_rank_but_an_energy_rank_of_zero() -> None:
    zero = np.zeros(4)
    assert stable_rank(zero) is None
    assert effective_rank(zero) is None
    assert energy_rank(zero, 0.9) == 0
    assert frobenius_norm(zero) == 0.0
    assert energy_share(zero, 2) is None


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1.0, 1e200])
def test_statistics_do_not_depend_on_scale(scale: float) -> None:
    sigma = np.array([3.0, 2.0, 1.0]) * scale
    assert stable_rank(sigma) == pytest.approx(14 / 9)
    assert energy_rank(sigma, 0.9) == 2
    assert energy_share(sigma, 1) == pytest.approx(9 / 14)
    assert frobenius_norm(sigma) == pytest.approx(scale * math.sqrt(14))
