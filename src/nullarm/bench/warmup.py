"""Warming up: both arms in turn, until neither gets faster or slower from run to run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np

from nullarm.bench.contamination import Judged
from nullarm.bench.runs import State

WINDOW = 6
"""Last runs whose slope is looked at."""
LEVEL = 0.01
"""Change over the window, as a share of the mean, that is called flat however sure it is."""


@dataclass(frozen=True)
class WarmUp:
    """How one arm warmed up.

    Attributes:
        seconds_per_token: Of each run, in order.
        flat: Whether the last runs no longer showed a trend; None when that was not asked.
    """

    seconds_per_token: tuple[float, ...]
    flat: bool | None


def is_flat(values: Sequence[float]) -> bool:
    """Whether the last `WINDOW` values show no trend: their change is below `LEVEL`, or below twice its standard error.

    Ordinary least squares over the index. Fewer values are never flat.
    """
    if len(values) < WINDOW:
        return False
    y = np.asarray(values[-WINDOW:], dtype=np.float64)
    x = np.arange(WINDOW) - (WINDOW - 1) / 2
    slope = float(x @ y) / float(x @ x)
    residuals = y - y.mean() - slope * x
    error = sqrt(float(residuals @ residuals) / (WINDOW - 2) / float(x @ x))
    return abs(slope) <= max(LEVEL * float(y.mean()) / (WINDOW - 1), 2 * error)


def warm_up(run: Callable[[str], float], arms: Sequence[str], most: int) -> dict[str, WarmUp]:
    """Run the arms in turn until both are flat at the same time, or `most` times each.

    Args:
        run: Runs an arm once; seconds per token.
        arms: Their names.
        most: Runs of each; with fewer than `WINDOW` nobody asks whether they are flat.
    """
    seen: dict[str, list[float]] = {arm: [] for arm in arms}
    for _ in range(most):
        for arm in arms:
            seen[arm].append(run(arm))
        if all(is_flat(values) for values in seen.values()):
            break
    return {arm: WarmUp(tuple(v), is_flat(v) if most >= WINDOW else None) for arm, v in seen.items()}


def assess(warm_ups: Iterable[WarmUp]) -> Judged:
    """What the warm-up says of every run of its process, whichever arm: SUSPECT where an arm never got flat.

    Not having asked is no reason. It is an arm's speed that did not settle, so one arm's trend counts for both.
    """
    restless = [len(warm.seconds_per_token) for warm in warm_ups if warm.flat is False]
    if not restless:
        return Judged(State.CLEAN)
    return Judged(State.SUSPECT, (f"warm-up: never got flat in {max(restless)} runs",))
