"""Placement controls: the same ranks on other modules of the same shape, so the parameters match exactly."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nullarm.errors import InvalidResult
from nullarm.protocols.rank_mechanism.ranks import ModuleShape, RankMap, check_complete, strata


@dataclass(frozen=True)
class MapDistance:
    """How far a rank map lies from `audited`.

    Attributes:
        hamming: Modules with another rank.
        rank_change: Σ|Δr|.
    """

    hamming: int
    rank_change: int


def distance(rank_map: Mapping[str, int], reference: Mapping[str, int]) -> MapDistance:
    """Distance between two complete maps of the same modules."""
    changes = [abs(rank_map[name] - rank) for name, rank in reference.items()]
    return MapDistance(hamming=sum(change > 0 for change in changes), rank_change=sum(changes))


def distinct_permutations(rank_map: Mapping[str, int], shapes: Sequence[ModuleShape]) -> int:
    """Number of distinct maps that permuting ranks within strata can make, the map itself included.

    Exact: the product over strata of the multinomial n! / Π m_r!, where m_r modules of the stratum have rank r.
    """
    total = 1
    for group in strata(shapes):
        total *= math.factorial(len(group))
        for multiplicity in Counter(rank_map[shape.name] for shape in group).values():
            total //= math.factorial(multiplicity)
    return total


def shuffled_maps(
    rank_map: Mapping[str, int], shapes: Sequence[ModuleShape], count: int, rng: np.random.Generator
) -> list[RankMap]:
    """Distinct permutations of a map within strata of equal (in, out), none of them the map itself.

    Drawn uniformly without replacement from all others, so that under the null hypothesis the map and its shuffles
    are exchangeable, which is what the randomisation test needs.

    Args:
        rank_map: The complete map to permute.
        shapes: All target modules.
        count: K, the number of shuffles wanted.
        rng: Source of the permutations.

    Raises:
        InvalidResult: If the map is not complete, or its strata admit fewer than `count` other maps.
    """
    check_complete("the map to shuffle", rank_map, shapes)
    check_enough_permutations(rank_map, shapes, count)
    groups = [[shape.name for shape in group] for group in strata(shapes)]
    order = [shape.name for shape in shapes]
    seen = {tuple(rank_map[name] for name in order)}
    maps: list[RankMap] = []
    while len(maps) < count:
        drawn = _permuted(rank_map, groups, rng)
        key = tuple(drawn[name] for name in order)
        if key not in seen:
            seen.add(key)
            maps.append({name: drawn[name] for name in order})
    return maps


def check_enough_permutations(rank_map: Mapping[str, int], shapes: Sequence[ModuleShape], count: int) -> None:
    """Refuse a map whose strata admit fewer than `count` maps other than itself.

    Raises:
        InvalidResult: With the number there are, and the ranks of every stratum.
    """
    distinct = distinct_permutations(rank_map, shapes)
    if distinct - 1 >= count:
        return
    groups = [
        f"{group[0].in_features}×{group[0].out_features}: "
        + " ".join(f"{m}·r{r}" for r, m in sorted(Counter(rank_map[shape.name] for shape in group).items()))
        for group in strata(shapes)
    ]
    raise InvalidResult(
        f"ranks can be permuted within modules of equal shape in only {distinct} ways (the map itself included), "
        f"but the planned test needs {count + 1}",
        value="; ".join(groups),
        valid=f"at least {count + 1} distinct permutations, or fewer shuffles",
        next_command="lower the number of shuffles, allow more ranks, or adapt more modules of equal shape",
    )


def _permuted(rank_map: Mapping[str, int], groups: list[list[str]], rng: np.random.Generator) -> RankMap:
    drawn: RankMap = {}
    for names in groups:
        ranks = rng.permutation([rank_map[name] for name in names])
        drawn.update(zip(names, ranks.tolist(), strict=True))
    return drawn
