"""A/A noise: how much an arm's score moves when nothing but the dice of a retraining changes."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np
import numpy.typing as npt

from nullarm.errors import InvalidResult
from nullarm.stats.arrays import Floats, as_finite


@dataclass(frozen=True)
class Noise:
    """Noise of a contrast, in the unit of the score.

    Attributes:
        cell_sd: Standard deviation of one arm's mean score over A/A retrainings at one seed, items included.
        item_effect_se: Standard error because items react differently to the treatment. More seeds do not reduce it,
            only more items do; 0 when the claim is about these very items.
    """

    cell_sd: float
    item_effect_se: float = 0.0

    def __post_init__(self) -> None:
        for value in (self.cell_sd, self.item_effect_se):
            if not 0 <= value < float("inf"):
                raise InvalidResult("a standard deviation is negative or not finite", value=value, valid="≥ 0")


def planned_noise(arm_sd: float, *, item_sd: float, n_items: int) -> Noise:
    """Noise of a planned evaluation: √(arm_sd² + item_sd²/n_items).

    Args:
        arm_sd: Standard deviation of an arm's true score over retrainings (what infinitely many items would show).
        item_sd: Standard deviation of an item's score over retrainings, measured, or `binomial_sd` of the accuracy.
        n_items: Items of the evaluation.

    Raises:
        InvalidResult: No items, or a negative standard deviation.
    """
    if n_items < 1:
        raise InvalidResult("an evaluation needs items", value=n_items, valid="n_items ≥ 1")
    if min(arm_sd, item_sd) < 0:
        raise InvalidResult("a standard deviation is negative", value=(arm_sd, item_sd), valid="≥ 0")
    return Noise(sqrt(arm_sd**2 + item_sd**2 / n_items))


def binomial_sd(accuracy: float) -> float:
    """√(p(1 − p)), the most an item scored right or wrong can vary; less when some items are always right.

    Raises:
        InvalidResult: The accuracy is not between 0 and 1.
    """
    if not 0 <= accuracy <= 1:
        raise InvalidResult("an accuracy is not between 0 and 1", value=accuracy, valid="0 to 1")
    return sqrt(accuracy * (1 - accuracy))


def noise_of_replicates(scores: npt.ArrayLike) -> Noise:
    """Noise measured on A/A replicates.

    Args:
        scores: [seeds, replicates ≥ 2, items] scores of one arm rerun.

    Raises:
        InvalidResult: Fewer than 2 replicates, no seed or item, NaN or infinite scores.
    """
    replicates = as_finite(scores, "seeds, replicates, items", "A/A scores")
    if replicates.size == 0 or replicates.shape[1] < 2:
        raise InvalidResult(
            "A/A noise needs replicates", value=replicates.shape, valid="[seeds, replicates ≥ 2, items]"
        )
    return Noise(float(np.sqrt(replicates.mean(axis=2).var(axis=1, ddof=1).mean())))


def noise_of_contrast(treated: Floats, controls: Floats, *, item_effect_se: float) -> Noise:
    """Noise as seen in a contrast, pooled over controls within seeds and differences between seeds.

    Args:
        treated: [seeds ≥ 2] seed-level scores.
        controls: [seeds, K] seed-level scores of the controls.
        item_effect_se: As the bootstrap found it.
    """
    seeds, k = controls.shape
    differences = treated - controls.mean(axis=1)
    between = (seeds - 1) * float(differences.var(ddof=1)) / (1 + 1 / k)
    within = float(((controls - controls.mean(axis=1, keepdims=True)) ** 2).sum())
    return Noise(sqrt((between + within) / (seeds * k - 1)), item_effect_se)
