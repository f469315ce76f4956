"""What a design can show: minimum detectable effect, power, seeds needed. By simulation from A/A noise.

One simulation answers every question. A study simulated without effect has a threshold: the least true effect which,
added to its treated arm, would have it detected (p below α and the interval above 0). Adding an effect e moves T by e
and an arrangement's T* by c · e with a known c < 1, so the threshold is found without search, and power at e is the
share of thresholds below e. Likewise each study without effect has the least margin at which it is called EQUIVALENT.

"Detected" is CONFIRMED or DETECTED_BELOW_MARGIN: a true effect of exactly δ is estimated below δ half of the time.
"""

from __future__ import annotations

import numpy as np
from scipy import special

from nullarm.errors import UsageError
from nullarm.stats.arrays import Floats, Ints
from nullarm.stats.bootstrap import few_units_stretch
from nullarm.stats.closed_form import detection_power, equivalence_power_at_zero
from nullarm.stats.design import Design, check_design
from nullarm.stats.noise import Noise
from nullarm.stats.randomisation import arrangement_count, leave_one_out

TARGET_POWER = 0.8
MAX_SEEDS = 1_000
STUDIES = 1_000
_ENUMERATED = 1_024  # arrangements, above which a simulated study draws
_DRAWN = 999
_RESAMPLES = 400
_SIMULATED_SEEDS = 24  # above, the closed form agrees within the simulation's own error


def minimum_detectable_effect(
    design: Design, noise: Noise, *, rng: np.random.Generator, power: float = TARGET_POWER, studies: int = STUDIES
) -> float:
    """True effect that the design detects with probability `power`, in the unit of the score.

    Raises:
        StudyError: The design cannot reach its level.
    """
    return float(np.quantile(detection_thresholds(design, noise, rng=rng, studies=studies), _share(power)))


def detection_probability(
    design: Design, noise: Noise, effect: float, *, rng: np.random.Generator, studies: int = STUDIES
) -> float:
    """Power: the probability that a true effect of this size is detected.

    Raises:
        StudyError: The design cannot reach its level.
    """
    return float((detection_thresholds(design, noise, rng=rng, studies=studies) < effect).mean())


def minimum_margin(
    design: Design, noise: Noise, *, rng: np.random.Generator, power: float = TARGET_POWER, studies: int = STUDIES
) -> float:
    """Margin inside which a true null is called EQUIVALENT with probability `power`, in the unit of the score.

    Raises:
        StudyError: The design cannot reach its level.
    """
    return float(np.quantile(equivalence_thresholds(design, noise, rng=rng, studies=studies), _share(power)))


def equivalence_probability(
    design: Design, noise: Noise, margin: float, *, rng: np.random.Generator, studies: int = STUDIES
) -> float:
    """The probability that a true null is called EQUIVALENT at this margin.

    Raises:
        StudyError: The design cannot reach its level.
    """
    return float((equivalence_thresholds(design, noise, rng=rng, studies=studies) < margin).mean())


def seeds_needed(
    design: Design,
    noise: Noise,
    *,
    effect: float | None = None,
    margin: float | None = None,
    rng: np.random.Generator,
    power: float = TARGET_POWER,
    studies: int = STUDIES,
) -> int | None:
    """Least number of seeds, at the design's controls per seed, that reaches `power` for all that is asked.

    Args:
        design: The design; its own number of seeds is not read.
        noise: A/A noise.
        effect: True effect to detect, above 0; None when detection is not asked.
        margin: Margin inside which a true null is to be called EQUIVALENT, above 0; None when that is not asked.
        rng: Source of the simulation.
        power: Probability to reach.
        studies: Simulated studies per number of seeds.

    Returns:
        The number of seeds, or None when none up to 1,000 is enough (then items are the limit, not seeds).

    Raises:
        UsageError: Neither is asked, or one is not above 0, or the power is not between 0 and 1.
    """
    asked = [value for value in (effect, margin) if value is not None]
    if not asked or not all(0 < value < float("inf") for value in asked):
        raise UsageError("seeds are counted for an effect or a margin above 0", value=(effect, margin))
    guess = _closed_form_seeds(design, noise, effect, margin, _share(power))
    if guess is None or guess > _SIMULATED_SEEDS:
        return guess

    def enough(seeds: int) -> bool:
        planned = _with_seeds(design, seeds)
        if planned.fault() is not None:
            return False
        if effect is not None and detection_probability(planned, noise, effect, rng=rng, studies=studies) < power:
            return False
        return margin is None or equivalence_probability(planned, noise, margin, rng=rng, studies=studies) >= power

    seeds = guess
    if not enough(seeds):
        return next((more for more in range(seeds + 1, _SIMULATED_SEEDS + 1) if enough(more)), _SIMULATED_SEEDS + 1)
    while seeds > 2 and enough(seeds - 1):
        seeds -= 1
    return seeds


def detection_thresholds(design: Design, noise: Noise, *, rng: np.random.Generator, studies: int = STUDIES) -> Floats:
    """[studies] least true effect at which each simulated study would be detected.

    Raises:
        StudyError: The design cannot reach its level.
    """
    check_design(design)
    contrast, items = _simulated(design, noise, rng, studies)
    tested = _randomisation_threshold(contrast, design, rng) if _randomised(design) else _t_threshold(contrast, design)
    low, _ = _interval_ends(contrast[:, :, 0], design, noise, rng)
    thresholds: Floats = np.maximum(tested, -low) - items
    return thresholds


def equivalence_thresholds(design: Design, noise: Noise, *, rng: np.random.Generator, studies: int = STUDIES) -> Floats:
    """[studies] least margin at which each simulated study without effect would be called EQUIVALENT.

    Raises:
        StudyError: The design cannot reach its level.
    """
    check_design(design)
    contrast, items = _simulated(design, noise, rng, studies)
    differences = contrast[:, :, 0]
    low, high = _interval_ends(differences, design, noise, rng)
    tost = np.abs(differences.mean(axis=1) + items) + _t_half_width(differences, design)
    thresholds: Floats = np.maximum(tost, np.maximum(-(low + items), high + items))
    return thresholds


def _simulated(design: Design, noise: Noise, rng: np.random.Generator, studies: int) -> tuple[Floats, Floats]:
    """[studies, seeds, K + 1] of each arm against the others of its seed, and [studies] error of the items."""
    cells = noise.cell_sd * rng.standard_normal((studies, design.seeds, design.controls + 1))
    return leave_one_out(cells), noise.item_effect_se * rng.standard_normal(studies)


def _randomised(design: Design) -> bool:
    return design.test == "within_seed_randomisation"


def _randomisation_threshold(contrast: Floats, design: Design, rng: np.random.Generator) -> Floats:
    """[studies] least effect that brings the randomisation p-value below α / family."""
    chosen, exact = _arrangements(design, rng)
    seeds, arms = design.seeds, design.controls + 1
    one_hot = np.zeros((len(chosen), seeds, arms))
    one_hot[np.arange(len(chosen))[:, None], np.arange(seeds), chosen] = 1 / seeds
    gain = leave_one_out(np.eye(arms))[0][chosen].mean(axis=1)  # T* moves by gain · e, T by e
    shuffled = contrast.reshape(len(contrast), -1) @ one_hot.reshape(len(chosen), -1).T
    rival = gain < 1 - 1e-9  # the arrangement that was run never falls behind itself
    overtaken = (shuffled[:, rival] - contrast[:, :, 0].mean(axis=1)[:, None]) / (1 - gain[rival])
    total = len(chosen) + (0 if exact else 1)
    stay = max(0, _most_below(design.step_alpha, total) - (total - int(rival.sum())))
    thresholds: Floats = -np.partition(-overtaken, stay, axis=1)[:, stay]
    return thresholds


def _most_below(alpha: float, total: int) -> int:
    """The most arrangements at or above T, the one that was run included, with p still below α."""
    count = int(np.ceil(alpha * total))
    while count / total >= alpha:
        count -= 1
    return count


def _arrangements(design: Design, rng: np.random.Generator) -> tuple[Ints, bool]:
    """[arrangements, seeds] which arm is called treated, and whether these are all."""
    arms = design.controls + 1
    if arrangement_count(design.seeds, design.controls) > _ENUMERATED:
        draws = max(_DRAWN, int(20 / design.step_alpha))
        return rng.integers(arms, size=(draws, design.seeds)), False
    return np.indices((arms,) * design.seeds).reshape(design.seeds, -1).T, True


def _t_threshold(contrast: Floats, design: Design) -> Floats:
    """[studies] least effect that brings the one-sided paired t below α / family."""
    differences = contrast[:, :, 0]
    thresholds: Floats = _t_half_width(differences, design) - differences.mean(axis=1)
    return thresholds


def _t_half_width(differences: Floats, design: Design) -> Floats:
    seeds = design.seeds
    critical = -special.stdtrit(seeds - 1, design.step_alpha)
    width: Floats = critical * differences.std(axis=1, ddof=1) / np.sqrt(seeds)
    return width


def _interval_ends(
    differences: Floats, design: Design, noise: Noise, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """Ends [studies] of the two-way bootstrap interval of simulated [studies, seeds] differences."""
    seeds = design.seeds
    centre = differences.mean(axis=1)
    weights = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=_RESAMPLES) / seeds
    draws = few_units_stretch(seeds, design.level) * (differences - centre[:, None]) @ weights.T
    draws += noise.item_effect_se * rng.standard_normal(_RESAMPLES)
    tail = (1 - design.level) / 2
    low, high = np.quantile(draws, [tail, 1 - tail], axis=1)
    return centre + low, centre + high


def _closed_form_seeds(
    design: Design, noise: Noise, effect: float | None, margin: float | None, power: float
) -> int | None:
    for seeds in range(2, MAX_SEEDS + 1):
        planned = _with_seeds(design, seeds)
        if planned.fault() is not None:
            continue
        found = effect is None or detection_power(planned, noise, effect) >= power
        if found and (margin is None or equivalence_power_at_zero(planned, noise, margin) >= power):
            return seeds
    return None


def _with_seeds(design: Design, seeds: int) -> Design:
    return Design(seeds, design.controls, design.alpha, design.test, design.draws, design.family)


def _share(power: float) -> float:
    if not 0 < power < 1:
        raise UsageError("a power is not between 0 and 1", value=power, valid="such as 0.8")
    return power
