"""Spectra in, one complete rank map per arm out.

Arms that keep the ladder of `allowed_ranks`: `audited`, `shuffled_k`, `inverse`, `replicate`, `uniform_median`,
`uniform_p90`. Arms at any integer rank, because they match parameters instead: `uniform_matched`, `type_mean`,
`depth_mean`. `probe` is the map the probe was trained with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from nullarm.errors import InvalidResult
from nullarm.protocols.rank_mechanism.controls import (
    depth_mean_map,
    inverse_map,
    type_mean_map,
    uniform_matched_map,
)
from nullarm.protocols.rank_mechanism.policy import AllocationPolicy, quantile_arm
from nullarm.protocols.rank_mechanism.ranks import ModuleShape, RankMap, check_complete, lora_parameters
from nullarm.protocols.rank_mechanism.shuffle import MapDistance, distance, distinct_permutations, shuffled_maps

__all__ = [
    "Allocation",
    "AllocationPolicy",
    "MapDistance",
    "ModuleShape",
    "RankMap",
    "allocate",
    "audited_map",
    "lora_parameters",
    "uniform_map",
]


@dataclass(frozen=True)
class Allocation:
    """The rank maps of one seed.

    Attributes:
        policy: The policy they were made by.
        maps: {arm: complete rank map}.
        parameters: {arm: LoRA parameters of its map}.
        distances: {arm: distance from `audited`}.
        distinct_permutations: Distinct maps that permuting `audited` within strata can make, itself included.
    """

    policy: AllocationPolicy
    maps: Mapping[str, RankMap]
    parameters: Mapping[str, int]
    distances: Mapping[str, MapDistance]
    distinct_permutations: int = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values. `distinct_permutations` is a string: it has more digits than a double."""
        return {
            "policy": self.policy.to_json(),
            "maps": {arm: dict(ranks) for arm, ranks in self.maps.items()},
            "parameters": dict(self.parameters),
            "distances": {arm: asdict(d) for arm, d in self.distances.items()},
            "distinct_permutations": str(self.distinct_permutations),
        }


def allocate(
    spectra: Mapping[str, Sequence[float]],
    shapes: Sequence[ModuleShape],
    probe: Mapping[str, int],
    policy: AllocationPolicy,
    *,
    shuffles: int,
    rng: np.random.Generator,
) -> Allocation:
    """Rank maps for every arm that the audit of one probe gives rise to.

    Args:
        spectra: {module: singular values, descending}.
        shapes: Every target module, in layer order.
        probe: The rank map of the probe, which caps all others.
        policy: How a spectrum becomes a rank.
        shuffles: K, the number of `shuffled_k` arms, k = 1…K.
        rng: Source of the shuffles.

    Raises:
        InvalidResult: If a module has no spectrum or no shape, if the strata admit too few distinct permutations, or
            if a shuffle does not have the parameters of `audited`.
        StudyError: If no allowed rank lies between `min_rank` and the probe's rank.
    """
    audited = audited_map(spectra, shapes, probe, policy)
    permuted = {
        f"shuffled_{k}": shuffle for k, shuffle in enumerate(shuffled_maps(audited, shapes, shuffles, rng), start=1)
    }
    permuted["inverse"] = inverse_map(audited, shapes)
    maps = {
        "probe": dict(probe),
        "audited": audited,
        **permuted,
        **{quantile_arm(q): uniform_map(spectra, shapes, probe, policy, q) for q in policy.uniform_quantiles},
        "uniform_matched": uniform_matched_map(audited, shapes),
        "type_mean": type_mean_map(audited, shapes),
        "depth_mean": depth_mean_map(audited, shapes),
        "replicate": dict(audited),
    }
    parameters = {arm: lora_parameters(ranks, shapes) for arm, ranks in maps.items()}
    check_parity(parameters, [*permuted, "replicate"])
    return Allocation(
        policy=policy,
        maps=maps,
        parameters=parameters,
        distances={arm: distance(ranks, audited) for arm, ranks in maps.items()},
        distinct_permutations=distinct_permutations(audited, shapes),
    )


def audited_map(
    spectra: Mapping[str, Sequence[float]],
    shapes: Sequence[ModuleShape],
    probe: Mapping[str, int],
    policy: AllocationPolicy,
) -> RankMap:
    """The rank the audit suggests, for every module."""
    check_complete("the audit", spectra, shapes)
    check_complete("the probe's rank map", probe, shapes)
    return {shape.name: policy.rung(policy.wanted(spectra[shape.name]), probe[shape.name]) for shape in shapes}


def uniform_map(
    spectra: Mapping[str, Sequence[float]],
    shapes: Sequence[ModuleShape],
    probe: Mapping[str, int],
    policy: AllocationPolicy,
    quantile: float,
) -> RankMap:
    """One rank for all, less where the probe had less: a quantile over modules of k@energy · margin, on the ladder."""
    check_complete("the audit", spectra, shapes)
    check_complete("the probe's rank map", probe, shapes)
    wanted = float(np.quantile([policy.wanted(spectra[shape.name]) for shape in shapes], quantile))
    return {shape.name: policy.rung(wanted, probe[shape.name]) for shape in shapes}


def check_parity(parameters: Mapping[str, int], arms: Sequence[str]) -> None:
    """Refuse permuted arms that do not have exactly the parameters of `audited`.

    Raises:
        InvalidResult: Naming the arms and their counts.
    """
    wrong = {arm: parameters[arm] for arm in arms if parameters[arm] != parameters["audited"]}
    if wrong:
        raise InvalidResult(
            "arms that permute the audited ranks do not have its parameters",
            value=wrong,
            valid=f"{parameters['audited']} LoRA parameters in each",
            next_command="permute within modules of equal (in, out) only",
        )
