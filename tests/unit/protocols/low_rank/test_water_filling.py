"""Greedy filling against every possible allocation."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nullarm.errors import InvalidResult
from nullarm.protocols.low_rank.allocation.allocate import allocate
from nullarm.protocols.low_rank.allocation.settings import Allocation
from nullarm.protocols.low_rank.allocation.water_filling import gains
from nullarm.protocols.low_rank.slots import Group

_SPECTRUM = st.lists(st.floats(0, 10), min_size=4, max_size=4).map(lambda s: sorted(s, reverse=True))


def filled(groups: list[Group], spectra: list[Any], budget: int, step: int = 1) -> list[int]:
    named = {(g.layer, g.slots): s for g, s in zip(groups, spectra, strict=True)}
    settings = Allocation(kind="water_filling", multiple_of=step)
    return allocate(settings, groups, budget, spectra=named, rng=np.random.default_rng(0))


def kept(spectra: list[Any], ranks: Any) -> float:
    return sum(float(np.square(s[:rank]).sum()) for s, rank in zip(spectra, ranks, strict=True))


def best(groups: list[Group], spectra: list[Any], budget: int) -> float:
    """By trying all."""
    return max(
        kept(spectra, ranks)
        for ranks in product(*(range(1, g.max_rank + 1) for g in groups))
        if sum(g.factored_numbers(rank) for g, rank in zip(groups, ranks, strict=True)) <= budget
    )


@given(st.lists(_SPECTRUM, min_size=1, max_size=4), st.integers(0, 120))
def test_equal_shapes_keep_the_most_that_any_allocation_keeps(spectra: list[Any], more: int) -> None:
    groups = [Group(layer, ("o",), 4, (4,)) for layer in range(len(spectra))]
    budget = 8 * len(groups) + more
    assert kept(spectra, filled(groups, spectra, budget)) == pytest.approx(best(groups, spectra, budget))


@given(st.lists(st.tuples(_SPECTRUM, st.integers(4, 12)), min_size=2, max_size=4), st.integers(0, 150))
def test_unlike_shapes_miss_less_than_one_step(shaped: list[tuple[Any, int]], more: int) -> None:
    groups = [Group(layer, ("o",), 4, (out,)) for layer, (_, out) in enumerate(shaped)]
    spectra = [spectrum for spectrum, _ in shaped]
    budget = sum(g.factored_numbers(1) for g in groups) + more
    ranks = filled(groups, spectra, budget)
    next_steps = [s[rank] ** 2 for s, rank in zip(spectra, ranks, strict=True) if rank < 4]
    assert kept(spectra, ranks) >= best(groups, spectra, budget) - max(next_steps, default=0) - 1e-9


@given(st.lists(st.tuples(_SPECTRUM, st.integers(4, 12)), min_size=2, max_size=4), st.integers(0, 150))
def test_unlike_shapes_keep_the_most_where_the_budget_is_what_was_spent(shaped: list[Any], more: int) -> None:
    """At a budget that ends on a threshold nothing is left for the knapsack."""
    groups = [Group(layer, ("o",), 4, (out,)) for layer, (_, out) in enumerate(shaped)]
    spectra = [spectrum for spectrum, _ in shaped]
    worth = sorted((s[j] ** 2 / g.factored_numbers(1) for s, g in zip(spectra, groups, strict=True) for j in (1, 2, 3)),
                   reverse=True)  # fmt: skip
    threshold = worth[more % len(worth)]
    ranks = [
        1 + sum(s[j] ** 2 / g.factored_numbers(1) >= threshold for j in (1, 2, 3))
        for s, g in zip(spectra, groups, strict=True)
    ]
    budget = sum(g.factored_numbers(rank) for g, rank in zip(groups, ranks, strict=True))
    found = filled(groups, spectra, budget)
    assert kept(spectra, found) == pytest.approx(kept(spectra, ranks))
    assert kept(spectra, found) == pytest.approx(best(groups, spectra, budget))


def test_a_steep_spectrum_gets_less_than_a_flat_one() -> None:
    groups = [Group(layer, ("o",), 32, (32,)) for layer in range(2)]
    steep, flat = 0.5 ** np.arange(32), np.ones(32)
    assert filled(groups, [steep, flat], 16 * 64 * 2) == [1, 31]


def test_a_step_of_several_ranks_is_worth_their_sum() -> None:
    group = Group(0, ("o",), 6, (6,))
    assert gains([3.0, 2.0, 1.0, 1.0, 1.0], group, 2, 5).tolist() == [13 / 24, 2 / 24]
    assert gains([3.0], group, 2, 6).tolist() == [9 / 24, 0.0, 0.0]


@pytest.mark.parametrize("spectrum", [[1.0, 2.0], [1.0, float("nan")], [1.0, -1.0]])
def test_what_is_no_spectrum_is_refused(spectrum: list[float]) -> None:
    with pytest.raises(InvalidResult, match="the spectrum of layer 3 o is not one; valid: singular values ≥ 0, desc"):
        gains(spectrum, Group(3, ("o",), 2, (2,)), 1, 2)
