"""Ranks for a budget: what every kind keeps, and what each is for."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from nullarm.errors import InvalidResult, StudyError
from nullarm.protocols.low_rank.allocation.allocate import allocate
from nullarm.protocols.low_rank.allocation.settings import Allocation, Budget
from nullarm.protocols.low_rank.slots import Group
from nullarm.study.validate import validated

DIP = [4.0, 4.0, 1.0, 1.0, 1.0, 1.0, 3.0, 3.0]
"""Variances of eight layers: Mix are 0 to 2, Compress 3 and 4, Refine 5 to 7."""


def attention(layers: int) -> list[Group]:
    return [Group(layer, ("q", "k", "v"), 64, (64, 16, 16)) for layer in range(layers)]


def numbers(groups: list[Group], ranks: list[int]) -> int:
    return sum(group.factored_numbers(rank) for group, rank in zip(groups, ranks, strict=True))


def ranks_of(settings: Allocation, groups: list[Group], budget: int, variance: Any = DIP, seed: int = 0) -> list[int]:
    spectra = {
        (g.layer, g.slots): np.sort(np.random.default_rng(i).exponential(size=g.max_rank))[::-1]
        for i, g in enumerate(groups)
    }
    return allocate(settings, groups, budget, variance=variance, spectra=spectra, rng=np.random.default_rng(seed))


_WIDTHS = st.integers(2, 12)
_LAYERS = st.lists(
    st.lists(
        st.sampled_from([("q", "k", "v"), ("o",), ("gate", "up"), ("down",)]), min_size=1, max_size=4, unique=True
    ),
    min_size=1,
    max_size=5,
)


@st.composite
def models(draw: st.DrawFn) -> list[Group]:
    """Layers that may lack groups; groups of the same slots have one shape."""
    shapes: dict[tuple[str, ...], tuple[int, tuple[int, ...]]] = {}
    groups = []
    for layer, members in enumerate(draw(_LAYERS)):
        for slots in members:
            shape = shapes.setdefault(slots, (draw(_WIDTHS), tuple(draw(_WIDTHS) for _ in slots)))
            groups.append(Group(layer, slots, *shape))
    return groups


@st.composite
def tasks(draw: st.DrawFn) -> tuple[Allocation, list[Group], int, list[float], int]:
    groups = draw(models())
    step = draw(st.integers(1, 3))
    cap = draw(st.none() | st.integers(3, 8))
    assume(min(g.max_rank for g in groups) >= step)
    settings = Allocation(kind=draw(st.sampled_from(["uniform", "mcr", "water_filling", "random"])), cap=cap)
    if settings.kind != "water_filling":
        settings = settings.model_copy(update={"equal": draw(st.sampled_from(["rank", "keep"]))})
    settings = settings.model_copy(update={"multiple_of": step})
    least = sum(g.factored_numbers(step) for g in groups)
    budget = draw(st.integers(least, least + sum(g.factored_numbers(g.max_rank) for g in groups)))
    variance = draw(st.lists(st.floats(0.1, 10), min_size=5, max_size=5))
    return settings, groups, budget, variance, draw(st.integers(0, 3))


@given(tasks())
def test_the_budget_is_kept_and_ranks_are_possible(task: Any) -> None:
    settings, groups, budget, variance, seed = task
    ranks = ranks_of(settings, groups, budget, variance, seed)
    assert numbers(groups, ranks) <= budget
    assert all(1 <= rank <= min(g.max_rank, settings.cap or 99) for g, rank in zip(groups, ranks, strict=True))
    assert all(rank % settings.multiple_of == 0 for rank in ranks)


@given(tasks())
def test_less_is_left_than_the_cheapest_step_that_could_still_be_had(task: Any) -> None:
    settings, groups, budget, variance, seed = task
    step = settings.multiple_of
    ranks = ranks_of(settings, groups, budget, variance, seed)
    shape_sizes = Counter((g.in_features, g.out_features) for g in groups)
    together = (
        settings.kind == "uniform" or ranks_of(settings.model_copy(update={"kind": "uniform"}), groups, budget) == ranks
    )
    steps = [
        g.factored_numbers(step) * (shape_sizes[g.in_features, g.out_features] if together else 1)
        for g, rank in zip(groups, ranks, strict=True)
        if rank + step <= min(g.max_rank, settings.cap or 99)
    ]
    assert not steps or budget - numbers(groups, ranks) < min(steps)


@given(tasks(), st.integers(1, 500))
def test_more_budget_spends_no_less(task: Any, more: int) -> None:
    settings, groups, budget, variance, seed = task
    less, rest = (numbers(groups, ranks_of(settings, groups, b, variance, seed)) for b in (budget, budget + more))
    assert less <= rest


@given(st.sampled_from(["uniform", "mcr", "water_filling"]), st.integers(0, 20_000), st.integers(0, 20_000))
def test_no_group_loses_by_more_budget_where_all_have_one_shape(kind: Any, budget: int, more: int) -> None:
    groups = attention(8)
    least = numbers(groups, [1] * 8)
    settings = Allocation(kind=kind)
    before, after = (ranks_of(settings, groups, least + b) for b in (budget, budget + more))
    assert all(a <= b for a, b in zip(before, after, strict=True))


@given(tasks())
def test_uniform_gives_equal_shapes_equal_ranks(task: Any) -> None:
    settings, groups, budget, _, _ = task
    uniform = settings.model_copy(update={"kind": "uniform"})
    found: dict[Any, set[int]] = {}
    for group, rank in zip(groups, ranks_of(uniform, groups, budget), strict=True):
        found.setdefault((group.in_features, group.out_features), set()).add(rank)
    assert all(len(ranks) == 1 for ranks in found.values())


def test_a_budget_that_is_a_rank_gives_that_rank_to_all() -> None:
    groups = [*attention(3), Group(2, ("k",), 64, (16,))]
    budget = Budget(rank=24).numbers(groups)
    assert ranks_of(Allocation(), groups, budget) == [24, 24, 24, 16]


def test_an_equal_share_gives_each_shape_a_rank_of_its_own() -> None:
    groups = [Group(0, ("o",), 64, (64,)), Group(0, ("gate", "up"), 64, (192, 192))]
    budget = Budget(keep=0.5).numbers(groups)
    assert ranks_of(Allocation(equal="keep"), groups, budget) == [17, 27]
    shares = [g.factored_numbers(r) / g.dense_numbers for g, r in zip(groups, [17, 27], strict=True)]
    assert shares == pytest.approx([0.5, 0.5], abs=0.04)


def test_zones_get_their_scales_and_the_budget_is_that_of_uniform() -> None:
    groups = attention(8)
    budget = Budget(rank=32).numbers(groups)
    ranks = ranks_of(Allocation(kind="mcr"), groups, budget)
    assert numbers(groups, ranks) == budget
    unit = 8 * 32 / (3 * 1.5 + 2 * 0.35 + 3 * 1.2)
    assert ranks == pytest.approx([1.5 * unit] * 3 + [0.35 * unit] * 2 + [1.2 * unit] * 3, abs=1)


def test_what_clipping_takes_from_one_zone_the_others_get() -> None:
    """The source clips after it normalises: its Mix layers would stay at the cap, and the rest of the budget unused."""
    groups = attention(8)
    budget = Budget(rank=16).numbers(groups)
    ranks = ranks_of(Allocation(kind="mcr", cap=19), groups, budget)
    assert numbers(groups, ranks) == budget
    assert set(ranks[:3]) == {19}
    free = ranks_of(Allocation(kind="mcr"), groups, budget)
    assert min(ranks[3:5]) > max(free[3:5])
    assert min(ranks[5:]) > max(free[5:])


def test_flat_variances_give_the_ranks_of_uniform() -> None:
    groups, flat = attention(8), [1.0, 1.05, 1.1, 1.0, 1.05, 1.1, 1.0, 1.05]
    budget = Budget(keep=0.3).numbers(groups)
    uniform = ranks_of(Allocation(), groups, budget)
    assert ranks_of(Allocation(kind="mcr"), groups, budget, flat) == uniform
    assert ranks_of(Allocation(kind="random"), groups, budget, flat) == uniform
    assert ranks_of(Allocation(kind="mcr", flat_below=1.0), groups, budget, flat) != uniform


@pytest.mark.parametrize("seed", range(5))
def test_random_exchanges_whole_layers_at_the_same_bytes(seed: int) -> None:
    groups = [g for i in range(8) for g in (attention(8)[i], Group(i, ("o",), 64, (64,)))]
    budget = Budget(rank=16).numbers(groups)
    mcr = ranks_of(Allocation(kind="mcr"), groups, budget)
    mixed = ranks_of(Allocation(kind="random"), groups, budget, seed=seed)
    assert mixed != mcr
    assert numbers(groups, mixed) == numbers(groups, mcr)
    pairs = [sorted(zip(ranks[::2], ranks[1::2], strict=True)) for ranks in (mcr, mixed)]
    assert pairs[0] == pairs[1]
    assert mixed == ranks_of(Allocation(kind="random"), groups, budget, seed=seed)


def test_layers_of_other_groups_keep_their_ranks() -> None:
    groups = [*attention(4), Group(4, ("o",), 64, (64,))]
    variance = [4.0, 4.0, 1.0, 1.0, 1.0]
    budget = Budget(rank=16).numbers(groups)
    mcr = ranks_of(Allocation(kind="mcr"), groups, budget, variance)
    mixed = ranks_of(Allocation(kind="random"), groups, budget, variance)
    assert mixed != mcr
    assert mixed[4] == mcr[4]


def test_the_sources_ranks_are_multiples_of_32_up_to_1536() -> None:
    groups = [Group(layer, ("q", "k", "v"), 4096, (4096, 1024, 1024)) for layer in range(32)]
    variance = [*[4.0] * 4, *[1.0] * 18, *[3.0] * 10]
    budget = Budget(rank=1024).numbers(groups)
    ranks = ranks_of(Allocation(kind="mcr", multiple_of=32, cap=1536), groups, budget, variance)
    assert max(ranks) == 1536
    assert all(rank % 32 == 0 for rank in ranks)
    assert budget - numbers(groups, ranks) < groups[0].factored_numbers(32)


def test_a_budget_below_the_least_ranks_is_refused() -> None:
    with pytest.raises(StudyError, match=r"does not pay for rank 4 everywhere.* got 100; valid: at least 5120"):
        ranks_of(Allocation(multiple_of=4), attention(8), 100)


def test_a_step_wider_than_a_group_is_refused() -> None:
    with pytest.raises(StudyError, match=r"layer 0 k has at most rank 16.*multiple_of; got 32; valid: 1 to 16"):
        ranks_of(Allocation(multiple_of=32), [Group(0, ("k",), 64, (16,))], 10_000)


@pytest.mark.parametrize("kind", ["mcr", "random"])
def test_missing_variances_are_named(kind: Any) -> None:
    with pytest.raises(InvalidResult, match=rf"'{kind}' needs the variance of every layer; got 7; valid: at least 8"):
        ranks_of(Allocation(kind=kind), attention(8), 10_000, DIP[:7])
    with pytest.raises(InvalidResult, match="needs the variance of every layer; valid: at least 8"):
        ranks_of(Allocation(kind=kind), attention(8), 10_000, None)


def test_a_missing_spectrum_is_named() -> None:
    with pytest.raises(InvalidResult, match=r"no spectrum of layer 0 q\+k\+v"):
        allocate(Allocation(kind="water_filling"), attention(1), 1000, rng=np.random.default_rng(0))


def test_settings_that_a_kind_does_not_read_are_refused() -> None:
    with pytest.raises(StudyError, match="'uniform' does not read flat_below, scales"):
        validated(Allocation, {"flat_below": 2.0, "scales": [1, 1, 1]}, "study.yaml")
    with pytest.raises(StudyError, match="'water_filling' does not read equal"):
        validated(Allocation, {"kind": "water_filling", "equal": "keep"}, "study.yaml")


@pytest.mark.parametrize("said", [{}, {"rank": 4, "keep": 0.5}, {"keep": 0.5, "same_bytes_as": "int8"}])
def test_a_budget_is_said_once(said: Any) -> None:
    with pytest.raises(StudyError, match="exactly one of rank, keep and same_bytes_as"):
        validated(Budget, said, "study.yaml")


def test_budgets_in_numbers() -> None:
    groups = attention(2)
    assert Budget(keep=0.29).numbers([Group(0, ("o",), 10, (10,))]) == 29
    assert Budget(rank=8).numbers(groups) == 2 * 8 * (64 + 96)
    assert Budget(rank=1000).numbers(groups) == 2 * 64 * (64 + 96)
    with pytest.raises(StudyError, match="another arm's, and has no numbers of its own; got 'int8'"):
        Budget(same_bytes_as="int8").numbers(groups)
