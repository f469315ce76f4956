"""Within-seed randomisation: had any of a seed's arms been called the treated one, would it have looked as good?

Under the null the treated arm of a seed is exchangeable with its K controls. So each of the (K + 1)^S ways to name one
arm per seed "treated" is equally likely, whatever the distribution of the scores, and the p-value is exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nullarm.errors import InvalidResult
from nullarm.stats.arrays import Floats, as_finite

EXACT_LIMIT = 1_000_000
"""Arrangements up to which the test enumerates them all."""
_CHUNK = 1 << 16
_TIE = 1e-12


@dataclass(frozen=True)
class Randomisation:
    """Outcome of a randomisation test.

    Attributes:
        statistic: T, the mean over seeds of (treated − mean of its controls).
        p_greater: Chance under the null of a T at least this large, ties counted.
        p_less: Chance of a T at least this small, ties counted.
        arrangements: Arrangements enumerated, or drawn.
        exact: Whether all arrangements were enumerated.
    """

    statistic: float
    p_greater: float
    p_less: float
    arrangements: int
    exact: bool

    @property
    def p_two_sided(self) -> float:
        """Twice the smaller tail, at most 1."""
        return min(1.0, 2 * min(self.p_greater, self.p_less))


def arrangement_count(seeds: int, controls: int) -> int:
    """(K + 1)^S, the equally likely ways to name one arm per seed the treated one."""
    return int((controls + 1) ** seeds)


def least_attainable_p(seeds: int, controls: int, draws: int) -> float:
    """The smallest p-value the test can give: 1/(K + 1)^S when enumerated, 1/(1 + draws) when drawn."""
    count = arrangement_count(seeds, controls)
    return 1 / count if count <= EXACT_LIMIT else 1 / (1 + draws)


def within_seed_randomisation(
    treated: npt.ArrayLike, controls: npt.ArrayLike, *, draws: int, rng: np.random.Generator
) -> Randomisation:
    """Test T = mean over seeds of (treated − mean of its K controls) by permutation within seeds.

    Exact when (K + 1)^S ≤ 1e6; otherwise (1 + #{T* ≥ T}) / (1 + draws), which is valid at any number of draws
    (Phipson and Smyth 2010). Ties count, up to rounding.

    Args:
        treated: [seeds] scores of the treated arm.
        controls: [seeds, K] scores of its controls, the same K for every seed.
        draws: Random arrangements when they are too many to enumerate.
        rng: Source of those arrangements.

    Raises:
        InvalidResult: Ragged controls, no seed, no control, seeds that do not line up, NaN or infinite scores.
    """
    first = as_finite(treated, "seeds", "treated")
    rest = as_finite(controls, "seeds, controls", "controls (the same number for every seed)")
    if len(first) != len(rest) or rest.size == 0:
        raise InvalidResult(
            "treated and controls do not line up", value=(first.shape, rest.shape), valid="[seeds] and [seeds, K ≥ 1]"
        )
    return _randomise(np.column_stack([first, rest]), draws, rng)


def sign_flip(differences: npt.ArrayLike, *, draws: int, rng: np.random.Generator) -> Randomisation:
    """Sign-flip test of paired differences: within-seed randomisation with one control.

    Args:
        differences: [seeds] treated − control.
        draws: As in `within_seed_randomisation`.
        rng: As in `within_seed_randomisation`.

    Raises:
        InvalidResult: No difference, NaN or infinite differences.
    """
    difference = as_finite(differences, "seeds", "differences")
    if difference.size == 0:
        raise InvalidResult("there are no differences to flip", valid="[seeds ≥ 1]")
    return _randomise(np.column_stack([difference / 2, -difference / 2]), draws, rng)


def leave_one_out(scores: Floats) -> Floats:
    """Each arm minus the mean of the others of its seed.

    Args:
        scores: [..., K + 1] scores of the arms of one seed.
    """
    others = scores.shape[-1] - 1
    contrast: Floats = ((others + 1) * scores - scores.sum(axis=-1, keepdims=True)) / others
    return contrast


def _randomise(scores: Floats, draws: int, rng: np.random.Generator) -> Randomisation:
    contrast = leave_one_out(scores)
    seeds, arms = scores.shape
    statistic = float(contrast[:, 0].sum()) / seeds
    # Rounding of sums must not break ties: it is of the order of 1e-16 of the scores, real differences are far above.
    tie = _TIE * float(np.abs(scores).max())
    exact = arrangement_count(seeds, arms - 1) <= EXACT_LIMIT
    greater, less, total = (
        _enumerate(contrast, statistic, tie) if exact else _draw(contrast, statistic, tie, draws, rng)
    )
    return Randomisation(statistic, greater / total, less / total, total if exact else draws, exact)


def _enumerate(contrast: Floats, statistic: float, tie: float) -> tuple[int, int, int]:
    sums: Floats = np.zeros(1)
    for row in contrast:
        sums = np.add.outer(sums, row).ravel()
    means = sums / len(contrast)
    return (*_tails(means, statistic, tie), means.size)


def _draw(contrast: Floats, statistic: float, tie: float, draws: int, rng: np.random.Generator) -> tuple[int, int, int]:
    seeds, arms = contrast.shape
    greater = less = 1  # the arrangement that was run is one of them
    for start in range(0, draws, _CHUNK):
        chosen = rng.integers(arms, size=(min(_CHUNK, draws - start), seeds))
        above, below = _tails(contrast[np.arange(seeds), chosen].mean(axis=1), statistic, tie)
        greater, less = greater + above, less + below
    return greater, less, 1 + draws


def _tails(means: Floats, statistic: float, tie: float) -> tuple[int, int]:
    return int((means >= statistic - tie).sum()), int((means <= statistic + tie).sum())
