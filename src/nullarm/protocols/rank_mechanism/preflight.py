"""What a rank-mechanism study needs beside the machine and its model: shuffles that are shuffles."""

from __future__ import annotations

import math

import numpy as np

from nullarm.errors import InvalidResult, ModelError, StudyError
from nullarm.models.facts import linear_shapes
from nullarm.protocols.rank_mechanism.allocate import Allocation, allocate, lora_parameters
from nullarm.protocols.rank_mechanism.arms import AUDITED, SHUFFLED
from nullarm.protocols.rank_mechanism.parameters import RankMechanismParameters
from nullarm.protocols.rank_mechanism.ranks import ModuleShape
from nullarm.sites.preflight import Check
from nullarm.study.spec import Study

SHUFFLES = "shuffles"
"""Name of the check."""


def shuffle_self_test(parameters: RankMechanismParameters, study: Study) -> Check:
    """Allocate from made-up spectra on the model's own shapes, and look whether the shuffles are what they must be.

    Each must have exactly the parameters of the audited map, and no two may be equal. Fewer permutations than shuffles
    is found here, before the probes are paid for.

    Args:
        parameters: The study's parameters.
        study: The study, for the number of shuffles.
    """
    count = study.arms[SHUFFLED].replicates if SHUFFLED in study.arms else 0
    if not count:
        return Check(SHUFFLES, True, "the study has no shuffled arm")
    try:
        shapes = _target_shapes(parameters)
    except ModelError as error:
        return Check(SHUFFLES, True, f"not tested before the model is here: {error.problem}")
    if not shapes:
        targets = ", ".join(parameters.target_modules)
        return Check(SHUFFLES, False, f"the model has no module named {targets}", "correct parameters.target_modules")
    try:
        allocation = _rehearsed(shapes, parameters, count)
    except (InvalidResult, StudyError) as error:
        return Check(SHUFFLES, False, error.problem, error.next_command)
    return _verified(allocation, shapes, count)


def made_up_spectra(shapes: tuple[ModuleShape, ...], rank: int, rng: np.random.Generator) -> dict[str, list[float]]:
    """{module: σ, descending}: exponential decay, of a length drawn per module: wanted ranks run from 1 to `rank`."""
    decay = np.exp(rng.uniform(math.log(0.4), math.log(rank), size=len(shapes)))
    return {s.name: np.exp(-np.arange(rank) / d).tolist() for s, d in zip(shapes, decay, strict=True)}


def _target_shapes(parameters: RankMechanismParameters) -> tuple[ModuleShape, ...]:
    known = linear_shapes(parameters.model)
    return tuple(
        ModuleShape(n, i, o) for n, (i, o) in known.items() if n.rpartition(".")[2] in parameters.target_modules
    )


def _rehearsed(shapes: tuple[ModuleShape, ...], parameters: RankMechanismParameters, count: int) -> Allocation:
    rank, rng = parameters.probe_rank, np.random.default_rng(0)
    probe = {shape.name: rank for shape in shapes}
    spectra = made_up_spectra(shapes, rank, rng)
    return allocate(spectra, shapes, probe, parameters.allocation, shuffles=count, rng=rng)


def _verified(allocation: Allocation, shapes: tuple[ModuleShape, ...], count: int) -> Check:
    audited = allocation.maps[AUDITED]
    names = [f"{SHUFFLED}_{k}" for k in range(1, count + 1)]
    costs = {lora_parameters(allocation.maps[name], shapes) for name in (AUDITED, *names)}
    distinct = len({tuple(allocation.maps[name][shape.name] for shape in shapes) for name in (AUDITED, *names)})
    changed = [allocation.distances[name].hamming for name in names]
    detail = (
        f"{count} on {len(shapes)} modules with ranks {sorted(set(audited.values()))}: {distinct - 1} distinct, "
        f"{'equal' if len(costs) == 1 else 'UNEQUAL'} parameters ({min(costs):,}), {min(changed)} to {max(changed)} "
        f"modules changed, 10^{math.log10(allocation.distinct_permutations):.0f} permutations"
    )
    return Check(SHUFFLES, len(costs) == 1 and distinct == count + 1, detail, "report this: the shuffle is broken")
