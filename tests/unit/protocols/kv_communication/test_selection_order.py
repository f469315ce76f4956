from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from nullarm.errors import InvalidResult
from nullarm.protocols.kv_communication.parameters import Order
from nullarm.protocols.kv_communication.selection.order import choose

CANDIDATES = [3, 4, 5, 8, 9, 10, 11, 20, 21, 30]
SCORES = [0.0, 9.0, 1.0, 8.0, 2.0, 7.0, 3.0, 6.0, 4.0, 5.0]
ORDERS: tuple[Order, ...] = get_args(Order)


def chosen(order: Order, proportion: float, candidates: list[int] = CANDIDATES, seed: int = 0) -> list[int]:
    return choose(order, proportion, candidates, scores=SCORES[: len(candidates)], rng=np.random.default_rng(seed))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("proportion", [0.01, 0.1, 0.25, 0.5, 0.75, 1.0])
def test_every_order_keeps_as_many_as_the_source_does_in_ascending_order(order: Order, proportion: float) -> None:
    kept = chosen(order, proportion)
    assert len(kept) == max(1, int(len(CANDIDATES) * proportion))
    assert kept == sorted(set(kept) & set(CANDIDATES))


@pytest.mark.parametrize("order", ORDERS)
def test_of_no_candidates_none_is_sent(order: Order) -> None:
    assert choose(order, 0.5, [], scores=[], rng=np.random.default_rng(0)) == []


def test_a_proportion_that_floating_point_puts_below_a_whole_number_is_that_number() -> None:
    assert int(0.29 * 100) == 28
    assert len(choose("front", 0.29, range(100))) == 29


@pytest.mark.parametrize(
    ("order", "kept"),
    [
        ("front", [3, 4, 5, 8]),
        ("back", [11, 20, 21, 30]),
        ("middle", [8, 9, 10, 11]),
        ("key_norm", [4, 8, 10, 20]),
    ],
)
def test_places_and_scores(order: Order, kept: list[int]) -> None:
    assert chosen(order, 0.4) == kept


def test_the_middle_has_one_fewer_before_than_behind_where_it_cannot_be_centred() -> None:
    assert choose("middle", 0.5, [0, 1, 2, 3, 4]) == [1, 2]
    assert choose("middle", 0.1, [0, 1]) == [0]


def test_of_equal_scores_the_later_token_is_sent() -> None:
    assert choose("delta", 0.5, [1, 2, 3, 4], scores=[1.0, 5.0, 1.0, 1.0]) == [2, 4]


def test_chance_depends_on_the_generator_alone_and_a_small_share_lies_in_a_larger_one() -> None:
    assert chosen("random", 0.5, seed=0) == chosen("random", 0.5, seed=0)
    draws = {tuple(chosen("random", 0.5, seed=seed)) for seed in range(20)}
    assert len(draws) > 10
    assert set(chosen("random", 0.2, seed=0)) < set(chosen("random", 0.5, seed=0))


def test_chance_prefers_no_place() -> None:
    times = dict.fromkeys(CANDIDATES, 0)
    for seed in range(2000):
        for position in chosen("random", 0.3, seed=seed):
            times[position] += 1
    assert all(abs(count - 600) < 5 * (2000 * 0.3 * 0.7) ** 0.5 for count in times.values())


def test_what_an_order_needs_is_asked_for() -> None:
    with pytest.raises(ValueError, match="order random draws from a generator, and there is none"):
        choose("random", 0.5, CANDIDATES)
    with pytest.raises(ValueError, match="order delta needs one score for each of 10 candidates"):
        choose("delta", 0.5, CANDIDATES)
    with pytest.raises(ValueError, match="order delta needs one score for each of 10 candidates"):
        choose("delta", 0.5, CANDIDATES, scores=[1.0])


def test_a_score_that_is_no_number_is_refused() -> None:
    with pytest.raises(InvalidResult, match=r"a token's score is not a number; got .*nan"):
        choose("delta", 0.5, [1, 2], scores=[1.0, float("nan")])
