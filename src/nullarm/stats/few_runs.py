"""Seeds as few runs: robust aggregates (Agarwal et al. 2021, "Deep RL at the edge of the statistical precipice")."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import stats

from nullarm.errors import InvalidResult
from nullarm.stats.arrays import as_finite


def interquartile_mean(scores: npt.ArrayLike) -> float:
    """Mean of the middle half of all [runs, tasks] scores, pooled over both axes.

    Raises:
        InvalidResult: No scores, or NaN or infinite ones.
    """
    pooled = as_finite(scores, "runs, tasks", "scores")
    if pooled.size == 0:
        raise InvalidResult("there are no scores to average", valid="[runs ≥ 1, tasks ≥ 1]")
    return float(stats.trim_mean(pooled, proportiontocut=0.25, axis=None))


def probability_of_improvement(treated: npt.ArrayLike, control: npt.ArrayLike) -> float:
    """Chance that a treated run beats a control run on the same task, ties worth half, averaged over tasks.

    Args:
        treated: [runs, tasks].
        control: [other runs, tasks].

    Raises:
        InvalidResult: Different tasks, no scores, or NaN or infinite ones.
    """
    first, second = as_finite(treated, "runs, tasks", "treated"), as_finite(control, "runs, tasks", "control")
    if first.shape[1:] != second.shape[1:] or not (first.size and second.size):
        raise InvalidResult("the arms have different tasks or no runs", value=(first.shape, second.shape))
    difference = first[:, None, :] - second[None, :, :]
    return float(np.mean((difference > 0) + 0.5 * (difference == 0)))
