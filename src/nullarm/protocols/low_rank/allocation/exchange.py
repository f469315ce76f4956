"""The placebo of an allocation: the same ranks, at other depths."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence

import numpy as np

from nullarm.protocols.low_rank.slots import Group


def exchanged(groups: Sequence[Group], ranks: Sequence[int], rng: np.random.Generator) -> list[int]:
    """Whole layers' ranks in another order, drawn among all orders that differ; the same where there is none.

    Only layers of the same groups change places. Ranks of one layer stay together: that is the profile over depth, and
    nothing else, that is destroyed.
    """
    of_layer: dict[int, list[int]] = defaultdict(list)
    for index, group in enumerate(groups):
        of_layer[group.layer].append(index)
    strata: dict[Hashable, list[list[int]]] = defaultdict(list)
    for members in of_layer.values():
        shapes = tuple((groups[i].slots, groups[i].in_features, groups[i].out_features) for i in members)
        strata[shapes].append(members)
    mixed = list(ranks)
    exchangeable = any(len({tuple(ranks[i] for i in row) for row in rows}) > 1 for rows in strata.values())
    while exchangeable and mixed == ranks:
        for rows in strata.values():
            for row, source in zip(rows, rng.permutation(len(rows)), strict=True):
                for to, origin in zip(row, rows[source], strict=True):
                    mixed[to] = ranks[origin]
    return mixed
