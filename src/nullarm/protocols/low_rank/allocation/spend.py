"""Steps of rank, bought in the order of their worth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def spend(worths: Sequence[npt.NDArray[np.float64]], costs: Sequence[int], budget: int) -> list[int]:
    """How many steps each buyer gets: time and again, of all that can still be paid for, the step that is worth most.

    What is left is less than the cost of any step that is still to be had. As the budget grows, the sum spent never
    falls. The steps' worth × cost in sum is the most there is where all costs are equal, or where the budget runs out
    exactly at a threshold of worth; elsewhere the most is less than one further step's away.

    Args:
        worths: Of each buyer's steps, per number, falling.
        costs: Of each buyer's steps, numbers.
        budget: Numbers.

    Returns:
        Steps of each buyer, from its first one on. Among steps of equal worth, earlier buyers come first.
    """
    cost = np.asarray(costs, dtype=np.int64)
    buyers = np.repeat(np.arange(len(worths)), [len(worth) for worth in worths])
    queue = buyers[np.argsort(-np.concatenate(worths), kind="stable")]
    taken = np.zeros(len(worths), dtype=np.int64)
    while len(queue := queue[cost[queue] <= budget]):
        sums = np.cumsum(cost[queue])
        fitting = int(np.searchsorted(sums, budget, side="right"))
        taken += np.bincount(queue[:fitting], minlength=len(worths))
        budget -= int(sums[fitting - 1])
        queue = queue[fitting:]
    return [int(steps) for steps in taken]
