"""Two-way (seed, item) bootstrap of a mean difference.

Two known faults of the plain version are mended, because both would make the interval untrue:

- Resampling seeds and items of the matrix together counts the seed × item residual three times (Owen 2007, "The
  pigeonhole bootstrap", theorem 3), and that residual is most of the noise of right-or-wrong items. Here seeds and
  items are resampled as two independent parts. The seed part carries the residual already, once, so the item part is
  shrunk to what the items' own effects add: by √(1 − MSE/MSB) of the two-way table, 0 when they add nothing.
- A percentile interval over few units is too short (over three seeds a "90 %" one covers about 62 %). Each part is
  stretched by √(n/(n − 1)) · t(n − 1)/z, n its seeds or its items (clusters): the width of a t interval, with the shape
  left to the bootstrap.

Over three seeds that differ much more than their residual, the 27 possible draws remain coarse: 90 % covers 87 %.
With one seed it is the ordinary one-way bootstrap of items (or of clusters of items), neither shrunk nor stretched.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import special

from nullarm.errors import InvalidResult
from nullarm.stats.arrays import Floats, as_finite
from nullarm.stats.verdict import Interval

IntervalMethod = Literal["percentile", "bca"]
_CHUNK = 1 << 22  # weights held at once: 32 MB


@dataclass(frozen=True)
class Bootstrap:
    """Bootstrap distribution of a mean difference, in two independent parts.

    Attributes:
        estimate: The mean difference.
        seed_part: [resamples] deviation from the estimate because of which seeds were drawn.
        item_part: [resamples] deviation because of which items were drawn.
        seed_influence: [seeds] pull of each seed on the estimate.
        item_influence: [clusters] pull of each item or cluster.
    """

    estimate: float
    seed_part: Floats
    item_part: Floats
    seed_influence: Floats
    item_influence: Floats

    @property
    def item_se(self) -> float:
        """Standard error that the items' own effects contribute; more seeds do not reduce it."""
        return float(np.sqrt((self.item_influence**2).sum()))

    def interval(self, level: float, method: IntervalMethod = "percentile") -> Interval:
        """Two-sided interval at `level`, by percentiles or bias-corrected and accelerated (Efron 1987)."""
        seeds, units = len(self.seed_influence), len(self.item_influence)
        draws = self.seed_part + self.item_part
        if seeds > 1:
            draws = few_units_stretch(seeds, level) * self.seed_part + few_units_stretch(units, level) * self.item_part
        tails = np.array([(1 - level) / 2, (1 + level) / 2])
        low, high = self.estimate + np.quantile(draws, tails if method == "percentile" else self._bca(tails))
        axes = "seed and item" if seeds > 1 else "item"
        return Interval(float(low), float(high), level, f"{axes} bootstrap, {method}")

    def _bca(self, tails: Floats) -> Floats:
        """The percentiles that undo the bias and the skewness of the draws."""
        deviation = self.seed_part + self.item_part
        below = ((deviation < 0).mean() + (deviation <= 0).mean()) / 2
        edge = 0.5 / len(deviation)
        bias = special.ndtri(np.clip(below, edge, 1 - edge))
        influence = np.concatenate([self.seed_influence, self.item_influence])
        spread = float((influence**2).sum()) ** 1.5
        acceleration = float((influence**3).sum()) / (6 * spread) if spread else 0.0
        shifted = bias + special.ndtri(tails)
        adjusted: Floats = special.ndtr(bias + shifted / (1 - acceleration * shifted))
        return adjusted


def few_units_stretch(units: int, level: float) -> float:
    """Factor that gives a percentile interval over `units` the width of a t interval; 1 for a single one."""
    if units == 1:
        return 1.0
    tail = (1 + level) / 2
    return float(sqrt(units / (units - 1)) * special.stdtrit(units - 1, tail) / special.ndtri(tail))


def two_way_bootstrap(
    differences: npt.ArrayLike, *, clusters: npt.ArrayLike | None = None, resamples: int, rng: np.random.Generator
) -> Bootstrap:
    """Bootstrap the mean of a difference matrix over seeds and items.

    Args:
        differences: [seeds, items] treated − control.
        clusters: [items] cluster of each item; whole clusters are drawn. None when items are independent.
        resamples: Bootstrap draws.
        rng: Source of the draws.

    Raises:
        InvalidResult: An empty matrix, NaN or infinite differences, or clusters that do not line up.
    """
    matrix = as_finite(differences, "seeds, items", "differences")
    if matrix.size == 0 or resamples < 1:
        raise InvalidResult("there is nothing to resample", value=(matrix.shape, resamples), valid="[seeds, items] ≥ 1")
    sums, sizes = _cluster_sums(matrix, clusters)
    estimate = float(matrix.mean())
    by_seed = matrix.mean(axis=1) - estimate
    share = _own_share(sums - sizes * matrix.mean(axis=1, keepdims=True))
    mean_sums = sums.mean(axis=0)
    ones = np.ones(len(by_seed))
    return Bootstrap(
        estimate=estimate,
        seed_part=_resampled_means(by_seed, ones, resamples, rng),
        item_part=share * (_resampled_means(mean_sums, sizes, resamples, rng) - estimate)
        if share
        else np.zeros(resamples),
        seed_influence=by_seed / len(by_seed),
        item_influence=share * (mean_sums - sizes * estimate) / sizes.sum(),
    )


def _cluster_sums(matrix: Floats, clusters: npt.ArrayLike | None) -> tuple[Floats, Floats]:
    """[seeds, clusters] sums and [clusters] sizes; each item is its own cluster when there are none."""
    if clusters is None:
        return matrix, np.ones(matrix.shape[1])
    labels = np.asarray(clusters)
    if labels.shape != matrix.shape[1:]:
        raise InvalidResult("clusters and items do not line up", value=(labels.shape, matrix.shape), valid="[items]")
    _, codes, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    sums: Floats = np.stack(
        [np.bincount(codes, weights=row, minlength=len(sizes)).astype(np.float64) for row in matrix]
    )
    return sums, sizes.astype(np.float64)


def _own_share(residual: Floats) -> float:
    """√(1 − MSE/MSB): the share of the item means' spread that is the items' own and not seed × item residual.

    Args:
        residual: [seeds, clusters] sums less what the seed's mean explains.
    """
    seeds = len(residual)
    if seeds == 1:
        return 1.0
    mean = residual.mean(axis=0)
    between = seeds * float((mean**2).sum())
    within = float(((residual - mean) ** 2).sum()) / (seeds - 1)
    return sqrt(max(0.0, 1 - within / between)) if between > 0 else 0.0


def _resampled_means(sums: Floats, sizes: Floats, resamples: int, rng: np.random.Generator) -> Floats:
    """[resamples] means of units drawn with replacement, as Σ weight · sum / Σ weight · size.

    Equal units share one multinomial weight, which makes right-or-wrong items cheap whatever their number.
    """
    units, counts = np.unique(np.stack([sums, sizes]), axis=1, return_counts=True)
    means: Floats = np.empty(resamples)
    step = max(1, _CHUNK // counts.size)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = rng.multinomial(sums.size, counts / sums.size, size=rows) @ units.T
        means[start : start + rows] = drawn[:, 0] / drawn[:, 1]
    return means
