"""Pareto frontier of cost against score: which arms are worth their cost, and how sure that is."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nullarm.errors import InvalidResult
from nullarm.stats.arrays import Floats, as_array

_CHUNK = 1 << 21  # numbers held at once by a step of the bootstrap: 16 MB


def pareto_frontier(costs: npt.ArrayLike, scores: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Whether no other arm costs at most as much and scores at least as high, one of them strictly.

    Args:
        costs: [arms] or [draws, arms], less is better; NaN is missing, as is infinity.
        scores: The same shape, more is better; NaN is missing.

    Returns:
        Membership, in the same shape. Equal arms are on the frontier together; a missing one is not on it, and keeps no
        other one off.

    Raises:
        InvalidResult: The shapes differ.
    """
    cost, score = np.asarray(costs, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if cost.shape != score.shape or cost.ndim not in (1, 2):
        raise InvalidResult("costs and scores do not line up", value=(cost.shape, score.shape), valid="[draws, arms]")
    member: npt.NDArray[np.bool_] = np.isfinite(cost + score)
    for arm in range(cost.shape[-1]):
        c, s = cost[..., arm, None], score[..., arm, None]
        member &= ~((c <= cost) & (s >= score) & ((c < cost) | (s > score)))  # a comparison with NaN is False
    return member


def frontier_membership(
    costs: npt.ArrayLike,
    scores: npt.ArrayLike,
    *,
    resamples: int,
    rng: np.random.Generator,
    clusters: npt.ArrayLike | None = None,
) -> Floats:
    """Share of item resamples in which an arm is on the frontier of mean cost and mean score.

    All arms are resampled together, so what they share (hard items, long prompts) moves none against another.

    Args:
        costs: [arms, items]; an arm with a NaN anywhere is missing.
        scores: [arms, items], likewise.
        resamples: Draws of the bootstrap.
        rng: Source of the draws.
        clusters: [items] cluster of each item; whole clusters are drawn. None when items are independent.

    Returns:
        [arms] shares, NaN for a missing arm.

    Raises:
        InvalidResult: The arrays do not line up, or there is nothing to resample.
    """
    cost, score = as_array(costs, "arms, items", "costs"), as_array(scores, "arms, items", "scores")
    if cost.shape != score.shape or cost.size == 0 or resamples < 1:
        raise InvalidResult("costs and scores do not line up, or are empty", value=(cost.shape, score.shape))
    codes = _codes(clusters, cost.shape[1])
    sizes = np.bincount(codes).astype(np.float64)
    sums: Floats = (cost + score).sum(axis=1)
    missing = np.isnan(sums)
    costs_of, scores_of = (_cluster_sums(np.where(missing[:, None], np.nan, table), codes) for table in (cost, score))
    on = np.zeros(len(cost))
    step = max(1, _CHUNK // len(sizes))
    for start in range(0, resamples, step):
        weights = rng.multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), size=min(step, resamples - start))
        items = (weights @ sizes)[:, None]
        on += pareto_frontier(weights @ costs_of.T / items, weights @ scores_of.T / items).sum(axis=0)
    return np.where(missing, np.nan, on / resamples)


def _codes(clusters: npt.ArrayLike | None, items: int) -> npt.NDArray[np.intp]:
    if clusters is None:
        return np.arange(items)
    labels = np.asarray(clusters)
    if labels.shape != (items,):
        raise InvalidResult("clusters and items do not line up", value=(labels.shape, items), valid="[items]")
    codes: npt.NDArray[np.intp] = np.unique(labels, return_inverse=True)[1]
    return codes


def _cluster_sums(values: Floats, codes: npt.NDArray[np.intp]) -> Floats:
    """[arms, clusters] sums of [arms, items]."""
    return np.stack([np.bincount(codes, weights=row) for row in values])
