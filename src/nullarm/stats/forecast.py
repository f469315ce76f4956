"""What the noise as seen implies for this design: the effect it could find, and the seeds that would settle it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from nullarm.stats.closed_form import two_sample_mde, two_sample_n
from nullarm.stats.design import Design
from nullarm.stats.noise import Noise
from nullarm.stats.power import MAX_SEEDS, TARGET_POWER, minimum_detectable_effect, seeds_needed
from nullarm.stats.verdict import Evidence


def forecast(evidence: Evidence, *, rng: np.random.Generator) -> Evidence:
    """Add the minimum detectable effect and the seeds needed, at 80 % power and the noise as seen.

    "Settled" means that a true effect of δ would be detected, and a true null called EQUIVALENT at ±δ. Without a margin
    it means that a true effect of the size estimated would be detected; for non-inferiority, that an equal treatment
    would be cleared; for equivalence, that a true null would be called EQUIVALENT. A difference is detected when its
    two-sided test rejects; inside the margin it may all the same be called EQUIVALENT. Evidence behind an obstacle, or
    without noise, is returned as it came.

    Args:
        evidence: Evidence on one contrast.
        rng: Source of the simulation.
    """
    noise = evidence.noise
    if evidence.obstacle is not None or noise is None or noise.cell_sd == 0 or evidence.n_seeds is None:
        return evidence
    if evidence.design is None:
        return _two_sample(evidence, noise, evidence.n_seeds)
    return replace(
        evidence,
        mde=minimum_detectable_effect(_detecting(evidence, evidence.design), noise, rng=rng),
        n_needed=_seeds(evidence, evidence.design, noise, rng),
    )


def _seeds(evidence: Evidence, design: Design, noise: Noise, rng: np.random.Generator) -> int | None:
    effect, margin = _to_settle(evidence)
    if effect == 0:
        return None
    if evidence.question == "equivalence":
        return seeds_needed(design, noise, margin=margin, rng=rng)
    if evidence.question == "non_inferiority":
        return seeds_needed(design, noise, effect=effect, rng=rng)
    if evidence.question == "difference":
        found = seeds_needed(_detecting(evidence, design), noise, effect=effect, rng=rng)
        null = seeds_needed(design, noise, margin=margin, rng=rng) if margin is not None else 0
        return None if found is None or null is None else max(found, null)
    return seeds_needed(design, noise, effect=effect, margin=margin, rng=rng)


def _detecting(evidence: Evidence, design: Design) -> Design:
    """A two-sided test at α finds an effect of one direction as the one-sided test at α/2 does."""
    return replace(design, alpha=design.alpha / 2) if evidence.question == "difference" else design


def _two_sample(evidence: Evidence, noise: Noise, runs: int) -> Evidence:
    effect, margin = _to_settle(evidence)
    sd, alpha = noise.cell_sd, evidence.alpha
    return replace(
        evidence,
        mde=two_sample_mde(runs, sd, alpha=alpha, power=TARGET_POWER),
        n_needed=two_sample_n(sd, effect=effect, margin=margin, alpha=alpha, power=TARGET_POWER, most=MAX_SEEDS),
    )


def _to_settle(evidence: Evidence) -> tuple[float, float | None]:
    """The effect to find, and the margin to be inside of."""
    if evidence.margin > 0:
        return evidence.margin, evidence.margin
    return abs(evidence.estimate or 0.0), None
