"""Pareto frontier and how sure it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nullarm.errors import InvalidResult
from nullarm.stats.pareto import frontier_membership, pareto_frontier


def members(costs: Any, scores: Any) -> Any:
    return pareto_frontier(costs, scores).tolist()


def test_what_costs_more_has_to_score_more() -> None:
    assert members([1, 2, 3, 4], [0.5, 0.4, 0.7, 0.7]) == [True, False, True, False]


def test_equal_arms_share_a_place() -> None:
    assert members([1, 1, 1, 2], [0.5, 0.5, 0.4, 0.5]) == [True, True, False, False]


def test_a_missing_arm_is_nowhere_and_in_nobodys_way() -> None:
    nan = float("nan")
    assert members([1, nan, 0], [0.5, 1.0, nan]) == [True, False, False]


def test_draws_are_looked_at_one_by_one() -> None:
    assert members([[1, 2], [1, 2]], [[0.5, 0.6], [0.6, 0.5]]) == [[True, True], [True, False]]


_PLACES = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=8)


@given(_PLACES)
def test_it_is_the_definition(places: list[tuple[int, int]]) -> None:
    wanted = [
        not any(c <= cost and s >= score and (c, s) != (cost, score) for c, s in places) for cost, score in places
    ]
    assert members([c for c, _ in places], [s for _, s in places]) == wanted


def membership(costs: Any, scores: Any, **more: Any) -> list[float]:
    shares: list[float] = frontier_membership(
        costs, scores, resamples=2_000, rng=np.random.default_rng(0), **more
    ).tolist()
    return shares


def test_an_arm_that_is_beaten_on_every_item_is_never_on_it() -> None:
    scores = [[1.0, 1.0, 1.0, 0.0], [0.0, 0.0, 1.0, 0.0]]
    assert membership([[1] * 4, [2] * 4], scores) == [1.0, 0.0]


def test_the_share_is_the_chance_of_being_better() -> None:
    """The dear arm is on the frontier when more drawn items favour it than not: P(X > n/2), X binomial(n, 1/2)."""
    scores = np.array([[1, 0] * 50, [0, 1] * 50], dtype=float)
    cheap, dear = membership(np.array([[1.0] * 100, [2.0] * 100]), scores)
    assert cheap == 1.0
    assert dear == pytest.approx(0.46, abs=0.04)  # half of 1 − P(tie), and P(tie) is 0.08


def test_costs_are_resampled_with_the_items() -> None:
    """Which of two equally good arms is the cheaper depends on which items are drawn."""
    first, second = membership([[1.0, 3.0] * 20, [3.0, 1.0] * 20], np.ones((2, 40)))
    assert 0.4 < first < 0.7
    assert 0.4 < second < 0.7
    assert first + second >= 1.0


def test_whole_clusters_are_drawn() -> None:
    """Ten items of one cluster say no more than one: a single one against the arm is drawn often enough."""
    scores = np.array([[0.0] * 19 + [1.0], [1.0] * 19 + [0.0]])
    costs = np.array([[1.0] * 20, [2.0] * 20])
    assert membership(costs, scores)[1] == 1.0
    clusters = ["a"] * 19 + ["b"]
    assert membership(costs, scores, clusters=clusters)[1] == pytest.approx(0.75, abs=0.03)  # not when b is drawn twice


def test_a_missing_arm_has_no_share() -> None:
    shares = membership([[1.0, 1.0], [2.0, 2.0]], [[1.0, np.nan], [0.0, 0.0]])
    assert np.isnan(shares[0])
    assert shares[1] == 1.0


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: pareto_frontier([1, 2], [1]), "costs and scores do not line up"),
        (lambda: membership([[1.0]], [[1.0, 2.0]]), "costs and scores do not line up, or are empty"),
        (lambda: membership(np.ones((1, 0)), np.ones((1, 0))), "or are empty"),
        (lambda: membership([[1.0]], [[1.0]], clusters=["a", "b"]), "clusters and items do not line up"),
    ],
)
def test_arrays_that_do_not_line_up_are_refused(call: Any, words: str) -> None:
    with pytest.raises(InvalidResult, match=words):
        call()
