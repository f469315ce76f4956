"""Simulated studies for the calibration of verdicts: scores whose truth is known, judged by the real engine."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt

import numpy as np

from nullarm.stats.arrays import Floats
from nullarm.stats.decide import decide
from nullarm.stats.verdict import Evidence, Judgement, Verdict

STUDIES = int(os.environ.get("NULLARM_CALIBRATION_STUDIES", "2000"))
"""Studies per design; 10,000 for the figures that are kept."""


@dataclass(frozen=True)
class World:
    """How scores come about: score = effect + items' own effects + retraining + residual.

    Attributes:
        seeds: S.
        controls: K.
        items: N.
        effect: True mean effect of the treatment.
        effect_sd: How much that effect varies between seeds.
        item_effect_sd: How much it varies between items; the items are then a sample, drawn anew for every study.
        arm_sd: How much an arm's true score varies between retrainings.
        item_sd: Residual of one item in one run.
        heavy: Draw everything from t(3) instead of the normal distribution.
    """

    seeds: int
    controls: int
    items: int = 20
    effect: float = 0.0
    effect_sd: float = 0.0
    item_effect_sd: float = 0.0
    arm_sd: float = 1.0
    item_sd: float = 2.0
    heavy: bool = False

    @property
    def cell_sd(self) -> float:
        """Standard deviation of one run's mean score."""
        return sqrt(self.arm_sd**2 + self.item_sd**2 / self.items)

    def draw(self, rng: np.random.Generator) -> tuple[Floats, Floats]:
        """One study: treated [seeds, items] and controls [seeds, K, items]."""
        s, k, n = self.seeds, self.controls, self.items
        scores = self.arm_sd * self._noise(rng, (s, k + 1, 1)) + self.item_sd * self._noise(rng, (s, k + 1, n))
        scores += self._noise(rng, (s, 1, 1)) + self._noise(rng, (1, 1, n))  # seeds and items that are hard for all
        effect = (
            self.effect + self.effect_sd * self._noise(rng, (s, 1)) + self.item_effect_sd * self._noise(rng, (1, n))
        )
        return scores[:, 0] + effect, scores[:, 1:]

    def _noise(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
        return rng.standard_t(3, shape) / sqrt(3) if self.heavy else rng.standard_normal(shape)


def judged(gather: Callable[[np.random.Generator], Evidence], rng: np.random.Generator) -> list[Judgement]:
    """Judgements of `STUDIES` studies, each gathered anew."""
    return [decide(gather(rng)) for _ in range(STUDIES)]


def rate(judgements: list[Judgement], *verdicts: Verdict) -> float:
    """Share of the judgements with one of these verdicts."""
    counts = Counter(judgement.verdict for judgement in judgements)
    return sum(counts[verdict] for verdict in verdicts) / len(judgements)


def at_most(level: float) -> float:
    """`level` plus three Monte-Carlo standard errors at this number of studies."""
    return level + 3 * sqrt(level * (1 - level) / STUDIES)
