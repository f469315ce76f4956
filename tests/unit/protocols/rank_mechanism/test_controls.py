from __future__ import annotations

from collections import Counter
from itertools import combinations

import pytest
from hypothesis import given, settings
from spectra import llama_shapes, shaped_ranks

from nullarm.errors import InvalidResult
from nullarm.protocols.rank_mechanism.controls import (
    depth_mean_map,
    inverse_map,
    type_mean_map,
    uniform_matched_map,
)
from nullarm.protocols.rank_mechanism.module_names import layer_path, module_kind
from nullarm.protocols.rank_mechanism.ranks import ModuleShape, lora_parameters, strata

Case = tuple[tuple[ModuleShape, ...], dict[str, int]]


@settings(max_examples=60, deadline=None)
@given(case=shaped_ranks())
def test_inverse_reverses_the_order_and_keeps_the_parameters(case: Case) -> None:
    shapes, ranks = case
    inverse = inverse_map(ranks, shapes)
    assert list(inverse) == [shape.name for shape in shapes]
    assert lora_parameters(inverse, shapes) == lora_parameters(ranks, shapes)
    for group in strata(shapes):
        names = [shape.name for shape in group]
        assert Counter(inverse[n] for n in names) == Counter(ranks[n] for n in names)
        for a, b in combinations(names, 2):
            if ranks[a] < ranks[b]:
                assert inverse[a] >= inverse[b]


@settings(max_examples=60, deadline=None)
@given(case=shaped_ranks())
def test_means_keep_the_parameters_but_for_rounding(case: Case) -> None:
    shapes, ranks = case
    for build, group_of in ((type_mean_map, module_kind), (depth_mean_map, layer_path)):
        mean = build(ranks, shapes)
        assert list(mean) == [shape.name for shape in shapes]
        groups: dict[str | None, set[int]] = {}
        for name, rank in mean.items():
            groups.setdefault(group_of(name), set()).add(rank)
        assert all(len(found) == 1 for found in groups.values()), "one rank in each group"
        assert min(mean.values()) >= min(ranks.values())
        half_a_rank_everywhere = sum(shape.cost for shape in shapes) / 2
        assert abs(lora_parameters(mean, shapes) - lora_parameters(ranks, shapes)) <= half_a_rank_everywhere


@settings(max_examples=40, deadline=None)
@given(case=shaped_ranks())
def test_uniform_matched_is_nearest_of_all_maps_with_two_neighbouring_ranks(case: Case) -> None:
    shapes, ranks = case
    matched = uniform_matched_map(ranks, shapes)
    assert list(matched) == [shape.name for shape in shapes]
    low, high = min(matched.values()), max(matched.values())
    assert high - low <= 1
    target = lora_parameters(ranks, shapes)
    base = low * sum(shape.cost for shape in shapes)
    sums = {0}  # of costs of promoted modules
    for shape in shapes:
        sums |= {s + shape.cost for s in sums}
    nearest = min(abs(base + s - target) for s in sums)
    assert abs(lora_parameters(matched, shapes) - target) == nearest


def test_uniform_matched_is_uniform_where_that_is_as_near() -> None:
    shapes = llama_shapes(2)
    assert set(uniform_matched_map({s.name: 4 for s in shapes}, shapes).values()) == {4}


def test_uniform_matched_meets_a_real_models_parameters_exactly_and_evenly() -> None:
    wide = {"q": (4096, 4096), "o": (4096, 4096), "k": (4096, 1024), "gate": (4096, 14336), "down": (14336, 4096)}
    shapes = tuple(ModuleShape(f"model.layers.{i}.{n}", *io) for i in range(32) for n, io in wide.items())
    ranks = {shape.name: (1, 2, 4, 8, 16, 32, 64)[(i * i) % 7] for i, shape in enumerate(shapes)}
    matched = uniform_matched_map(ranks, shapes)
    assert lora_parameters(matched, shapes) == lora_parameters(ranks, shapes)
    high = max(matched.values())
    share = sum(rank == high for rank in matched.values()) / len(matched)
    for name in wide:
        kind = [matched[s.name] == high for s in shapes if module_kind(s.name) == name]
        assert abs(sum(kind) / len(kind) - share) < 0.1, "no type is favoured"
    halves = [sum(matched[s.name] == high for s in half) for half in (shapes[:80], shapes[80:])]
    assert abs(halves[0] - halves[1]) <= 4, "no depth is favoured"


def test_means_by_hand() -> None:
    shapes = llama_shapes(2)
    ranks = {shape.name: 2 for shape in shapes}
    ranks["model.layers.0.self_attn.q_proj"] = 16
    ranks["model.layers.1.self_attn.q_proj"] = 3  # mean 9.5: halves go up
    by_type = type_mean_map(ranks, shapes)
    assert by_type["model.layers.0.self_attn.q_proj"] == by_type["model.layers.1.self_attn.q_proj"] == 10
    assert by_type["model.layers.0.self_attn.o_proj"] == 2
    by_depth = depth_mean_map(ranks, shapes)
    cost = sum(shape.cost for shape in shapes[:7])
    assert by_depth["model.layers.0.mlp.up_proj"] == round(2 + 14 * 128 / cost)
    assert by_depth["model.layers.1.mlp.up_proj"] == 2


def test_modules_outside_of_layers_have_a_depth_of_their_own() -> None:
    shapes = (ModuleShape("model.layers.0.q", 8, 8), ModuleShape("score", 8, 8), ModuleShape("lm_head", 8, 8))
    assert depth_mean_map({"model.layers.0.q": 8, "score": 2, "lm_head": 4}, shapes) == {
        "model.layers.0.q": 8,
        "score": 3,
        "lm_head": 3,
    }


def test_incomplete_maps_are_refused() -> None:
    shapes = llama_shapes(1)
    with pytest.raises(InvalidResult, match="leaves out 6 module"):
        uniform_matched_map({shapes[0].name: 1}, shapes)
