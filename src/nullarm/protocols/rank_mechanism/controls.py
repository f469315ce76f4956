"""Rank maps that keep one property of `audited` and drop the rest.

`inverse` keeps the ladder's ranks. `uniform_matched`, `type_mean` and `depth_mean` do not: they exist to match the
parameters of `audited`, which the coarse ladder would not let them do, so they use any integer rank.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from nullarm.protocols.rank_mechanism.module_names import layer_path, module_kind
from nullarm.protocols.rank_mechanism.ranks import ModuleShape, RankMap, lora_parameters, strata


def inverse_map(rank_map: Mapping[str, int], shapes: Sequence[ModuleShape]) -> RankMap:
    """The order of ranks reversed within strata of equal (in, out): whoever had most gets least. Parameters match."""
    inverse: RankMap = {}
    for group in strata(shapes):
        names = sorted((shape.name for shape in group), key=lambda name: rank_map[name])
        ranks = [rank_map[name] for name in names]
        inverse.update(zip(names, reversed(ranks), strict=True))
    return {shape.name: inverse[shape.name] for shape in shapes}


def type_mean_map(rank_map: Mapping[str, int], shapes: Sequence[ModuleShape]) -> RankMap:
    """Each kind of module (`self_attn.q_proj`, …) at its mean rank, rounded to the nearest integer."""
    return _mean_map(rank_map, shapes, module_kind)


def depth_mean_map(rank_map: Mapping[str, int], shapes: Sequence[ModuleShape]) -> RankMap:
    """Each transformer layer at its mean rank, rounded to the nearest integer; modules outside of any form a group."""
    return _mean_map(rank_map, shapes, lambda name: layer_path(name) or "")


def uniform_matched_map(rank_map: Mapping[str, int], shapes: Sequence[ModuleShape]) -> RankMap:
    """The map nearest to the parameters of `rank_map` that has one rank everywhere, or two neighbouring ones.

    One rank if that comes as near as two. Otherwise the higher rank goes to as equal a fraction of every stratum as
    the exact match allows, at even steps through the model, so that neither type nor depth is favoured.
    """
    target = lora_parameters(rank_map, shapes)
    per_rank = sum(shape.cost for shape in shapes)
    low = max(1, target // per_rank)
    surplus = target - low * per_rank
    groups = strata(shapes)
    promoted = _promotions([group[0].cost for group in groups], [len(group) for group in groups], surplus)
    matched: RankMap = {}
    for group, count in zip(groups, promoted, strict=True):
        # kind by kind: in the model's order, every second module of a stratum may be an o_proj
        for index, shape in enumerate(sorted(group, key=lambda shape: module_kind(shape.name))):
            # `count` of len(group) at even steps: where ⌊(i+1)·count/n⌋ passes an integer
            step = (index + 1) * count // len(group) - index * count // len(group)
            matched[shape.name] = low + step
    return {shape.name: matched[shape.name] for shape in shapes}


def _mean_map(rank_map: Mapping[str, int], shapes: Sequence[ModuleShape], group_of: Callable[[str], str]) -> RankMap:
    """Every group at its mean, weighted by parameters per rank so that the count changes by rounding only."""
    parameters: dict[str, int] = {}
    cost: dict[str, int] = {}
    for shape in shapes:
        group = group_of(shape.name)
        parameters[group] = parameters.get(group, 0) + rank_map[shape.name] * shape.cost
        cost[group] = cost.get(group, 0) + shape.cost
    # ranks are ≥ 1, so the mean is; + ½ and floor in integers: halves go up, whatever their parity
    mean = {group: (2 * parameters[group] + cost[group]) // (2 * cost[group]) for group in cost}
    return {shape.name: mean[group_of(shape.name)] for shape in shapes}


def _promotions(costs: list[int], sizes: list[int], surplus: int) -> list[int]:
    """How many modules of each stratum to promote so that their costs sum to the nearest of `surplus`.

    Exact (a bounded subset sum); among equal sums the one that promotes the most equal fractions.
    """
    fraction = surplus / sum(cost * size for cost, size in zip(costs, sizes, strict=True))
    # {sum: (unevenness, counts)}; sums far beyond the surplus can never be the nearest
    bound = surplus + max(costs)
    reached: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, ())}
    for cost, size in zip(costs, sizes, strict=True):
        extended: dict[int, tuple[float, tuple[int, ...]]] = {}
        for total, (unevenness, counts) in reached.items():
            for count in range(min(size, (bound - total) // cost) + 1):
                candidate = (unevenness + cost * (count - fraction * size) ** 2 / size, (*counts, count))
                key = total + count * cost
                if key not in extended or candidate < extended[key]:
                    extended[key] = candidate
        reached = extended
    uniform = (0, sum(cost * size for cost, size in zip(costs, sizes, strict=True)))
    nearest = min(reached, key=lambda total: (abs(total - surplus), total not in uniform, reached[total]))
    return list(reached[nearest][1])
