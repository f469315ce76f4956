"""Power in closed form: the check on the simulation in `power`, and its replacement where seeds are many."""

from __future__ import annotations

from math import sqrt

import numpy as np
from scipy import special

from nullarm.stats.design import Design
from nullarm.stats.noise import Noise


def detection_power(design: Design, noise: Noise, effect: float) -> float:
    """Approximate probability that a true effect is detected (p below α / family and interval above 0).

    The paired t-test by the noncentral t distribution; the randomisation test by its normal limit, whose null variance
    ((1 + 1/K) σ² + e²/K)/S grows with the effect e, since the treated arm is shuffled among its own controls.

    Args:
        design: A design without fault.
        noise: A/A noise with `cell_sd` above 0.
        effect: True effect, in the unit of the score.
    """
    spread = noise.cell_sd * sqrt((1 + 1 / design.controls) / design.seeds)
    total = sqrt(spread**2 + noise.item_effect_se**2)
    if total == 0:
        return float(effect > 0)
    df = design.seeds - 1
    interval = _t_tail(df, design.alpha, effect / total)
    if design.test == "paired_t":
        return min(interval, _t_tail(df, design.step_alpha, effect / total))
    null = sqrt(spread**2 + effect**2 / (design.controls * design.seeds))
    return min(interval, float(special.ndtr((effect + special.ndtri(design.step_alpha) * null) / total)))


def equivalence_power_at_zero(design: Design, noise: Noise, margin: float) -> float:
    """Approximate probability that a true null is called EQUIVALENT at ±margin, by the t distribution."""
    spread = noise.cell_sd * sqrt((1 + 1 / design.controls) / design.seeds)
    total = sqrt(spread**2 + noise.item_effect_se**2)
    if total == 0:
        return 1.0
    return _tost_power_at_zero(design.seeds - 1, margin / total, design.step_alpha)


def two_sample_power(n: int, sd: float, effect: float, *, alpha: float) -> float:
    """Power of a two-sided two-sample t-test, counting detections in the effect's direction.

    Args:
        n: Runs per arm, at least 2.
        sd: Common standard deviation, above 0.
        effect: True effect.
        alpha: Level, both sides together.
    """
    return _t_tail(2 * (n - 1), alpha / 2, effect / (sd * sqrt(2 / n)))


def two_sample_mde(n: int, sd: float, *, alpha: float, power: float) -> float:
    """Effect that a two-sided two-sample t-test with `n` runs per arm finds with probability `power`."""
    df = 2 * (n - 1)
    return float(special.nctdtrinc(df, 1 - power, -special.stdtrit(df, alpha / 2))) * sd * sqrt(2 / n)


def two_sample_n(
    sd: float, *, effect: float, margin: float | None, alpha: float, power: float, most: int
) -> int | None:
    """Runs per arm that find `effect`, and call a null EQUIVALENT at `margin` if given; None above `most`."""

    def enough(n: int) -> bool:
        found = two_sample_power(n, sd, effect, alpha=alpha) >= power
        return found and (
            margin is None or _tost_power_at_zero(2 * (n - 1), margin / (sd * sqrt(2 / n)), alpha) >= power
        )

    return next((n for n in range(2, most + 1) if enough(n)), None)


def _tost_power_at_zero(df: int, margin_in_se: float, alpha: float) -> float:
    critical = -special.stdtrit(df, alpha)
    return max(0.0, float(2 * special.stdtr(df, margin_in_se - critical) - 1))


def _t_tail(df: int, alpha: float, shift: float) -> float:
    """Probability that a noncentral t exceeds the one-sided critical value at `alpha`."""
    below = special.nctdtr(df, shift, -special.stdtrit(df, alpha))
    # scipy answers NaN in places where the probability underflows (such as df 4, shift 50), and it does so to 0.
    return 1 - float(np.nan_to_num(below, nan=0.0))
