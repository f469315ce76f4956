from __future__ import annotations

from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from spectra import llama_shapes, shaped_ranks

from nullarm.errors import InvalidResult
from nullarm.protocols.rank_mechanism.ranks import ModuleShape, lora_parameters, strata
from nullarm.protocols.rank_mechanism.shuffle import MapDistance, distance, distinct_permutations, shuffled_maps

Case = tuple[tuple[ModuleShape, ...], dict[str, int]]


@settings(max_examples=60, deadline=None)
@given(case=shaped_ranks())
def test_shuffles_keep_all_but_the_placement(case: Case) -> None:
    shapes, ranks = case
    count = min(12, distinct_permutations(ranks, shapes) - 1)
    maps = shuffled_maps(ranks, shapes, count, np.random.default_rng(0))
    assert len(maps) == count
    assert len({tuple(m.items()) for m in [*maps, ranks]}) == count + 1, "distinct, and none is the original"
    for shuffled in maps:
        assert list(shuffled) == [shape.name for shape in shapes], "complete, in the order of the model"
        assert lora_parameters(shuffled, shapes) == lora_parameters(ranks, shapes)
        for group in strata(shapes):
            names = [shape.name for shape in group]
            assert Counter(shuffled[n] for n in names) == Counter(ranks[n] for n in names)


@settings(max_examples=40, deadline=None)
@given(case=shaped_ranks())
def test_one_more_shuffle_than_there_are_is_refused(case: Case) -> None:
    shapes, ranks = case
    distinct = distinct_permutations(ranks, shapes)
    with pytest.raises(InvalidResult, match=f"in only {distinct} ways .* needs {distinct + 1}"):
        shuffled_maps(ranks, shapes, distinct, np.random.default_rng(0))


def test_all_other_maps_can_be_drawn() -> None:
    shapes = llama_shapes(4)[::7]  # four q_proj
    ranks = dict(zip([s.name for s in shapes], [1, 1, 2, 4], strict=True))
    maps = shuffled_maps(ranks, shapes, 11, np.random.default_rng(1))
    expected = set(permutations([1, 1, 2, 4])) - {(1, 1, 2, 4)}
    assert {tuple(m.values()) for m in maps} == expected


def test_shuffles_are_drawn_evenly() -> None:
    shapes = llama_shapes(3)[::7]
    ranks = dict(zip([s.name for s in shapes], [1, 1, 2], strict=True))
    rng = np.random.default_rng(5)
    drawn = Counter(tuple(shuffled_maps(ranks, shapes, 1, rng)[0].values()) for _ in range(2000))
    assert drawn.keys() == {(1, 2, 1), (2, 1, 1)}
    assert abs(drawn[1, 2, 1] - 1000) < 5 * np.sqrt(500)


def test_the_count_of_permutations_by_hand() -> None:
    shapes = llama_shapes(4)  # strata: 8 k/v, 8 q/o, 8 gate/up, 4 down
    ranks = {shape.name: 2 for shape in shapes}
    assert distinct_permutations(ranks, shapes) == 1
    ranks["model.layers.0.self_attn.k_proj"] = 4
    assert distinct_permutations(ranks, shapes) == 8
    ranks["model.layers.0.mlp.down_proj"] = 4
    assert distinct_permutations(ranks, shapes) == 8 * 4
    ranks["model.layers.1.mlp.down_proj"] = 1
    assert distinct_permutations(ranks, shapes) == 8 * 12


def test_the_count_is_exact_where_doubles_are_not() -> None:
    shapes = llama_shapes(32)
    ranks = {shape.name: (1, 2, 4, 8, 16, 32, 64)[i % 5] for i, shape in enumerate(shapes)}
    assert distinct_permutations(ranks, shapes) > 10**60
    assert distinct_permutations(ranks, shapes) % 10 == 0


def test_a_refusal_says_which_ranks_there_are() -> None:
    shapes = llama_shapes(2)
    with pytest.raises(InvalidResult) as refused:
        shuffled_maps({shape.name: 8 for shape in shapes}, shapes, 19, np.random.default_rng(0))
    message = str(refused.value)
    assert "in only 1 ways" in message
    assert "needs 20" in message
    assert "64×32: 4·r8" in message
    assert "lower the number of shuffles" in message


def test_an_incomplete_map_is_refused() -> None:
    shapes = llama_shapes(1)
    with pytest.raises(InvalidResult, match=r"leaves out 1 module.*down_proj"):
        shuffled_maps({s.name: 1 for s in shapes[:-1]}, shapes, 1, np.random.default_rng(0))


def test_the_generator_decides() -> None:
    shapes = llama_shapes(3)
    ranks = {shape.name: (1, 2, 4)[i % 3] for i, shape in enumerate(shapes)}
    one, same, other = (shuffled_maps(ranks, shapes, 5, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert one == same
    assert one != other


def test_distance() -> None:
    assert distance({"a": 1, "b": 4, "c": 2}, {"a": 1, "b": 1, "c": 8}) == MapDistance(hamming=2, rank_change=9)
