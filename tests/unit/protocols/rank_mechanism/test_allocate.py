from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from spectra import LADDER, llama_shapes, shaped_ranks, spectra_for

from nullarm.errors import InvalidResult, StudyError
from nullarm.protocols.rank_mechanism.allocate import (
    Allocation,
    AllocationPolicy,
    ModuleShape,
    allocate,
    audited_map,
    check_parity,
    uniform_map,
)
from nullarm.protocols.rank_mechanism.ranks import lora_parameters
from nullarm.protocols.rank_mechanism.shuffle import distinct_permutations

Case = tuple[tuple[ModuleShape, ...], dict[str, int]]
POLICY = AllocationPolicy(energy=1.0, allowed_ranks=LADDER)
ON_THE_LADDER = ("audited", "inverse", "replicate", "uniform_median", "uniform_p90")


def allocation(shapes: tuple[ModuleShape, ...], ranks: dict[str, int], shuffles: int = 5) -> Allocation:
    probe = dict.fromkeys(ranks, 16)
    return allocate(spectra_for(ranks), shapes, probe, POLICY, shuffles=shuffles, rng=np.random.default_rng(0))


def varied(layers: int = 3) -> tuple[tuple[ModuleShape, ...], dict[str, int]]:
    shapes = llama_shapes(layers)
    return shapes, {shape.name: LADDER[i % 4] for i, shape in enumerate(shapes)}


@settings(max_examples=40, deadline=None)
@given(case=shaped_ranks())
def test_every_arm_is_complete_and_on_its_ladder(case: Case) -> None:
    shapes, ranks = case
    assume(distinct_permutations(ranks, shapes) > 3)
    made = allocation(shapes, ranks, shuffles=3)
    assert made.maps["audited"] == ranks
    names = [shape.name for shape in shapes]
    for arm, rank_map in made.maps.items():
        assert list(rank_map) == names, arm
        assert made.parameters[arm] == lora_parameters(rank_map, shapes)
        assert all(1 <= rank <= 16 for rank in rank_map.values()), "never above the probe"
        if arm in ON_THE_LADDER or arm.startswith("shuffled"):
            assert set(rank_map.values()) <= set(LADDER), arm
    for arm in ("shuffled_1", "shuffled_2", "shuffled_3", "inverse", "replicate"):
        assert made.parameters[arm] == made.parameters["audited"]


def test_the_arms_of_the_table() -> None:
    made = allocation(*varied(), shuffles=2)
    assert list(made.maps) == [
        "probe",
        "audited",
        "shuffled_1",
        "shuffled_2",
        "inverse",
        "uniform_median",
        "uniform_p90",
        "uniform_matched",
        "type_mean",
        "depth_mean",
        "replicate",
    ]
    assert set(made.maps["probe"].values()) == {16}
    assert made.maps["replicate"] == made.maps["audited"]
    assert made.maps["replicate"] is not made.maps["audited"]


def test_distances_from_audited() -> None:
    made = allocation(*varied())
    assert made.distances["audited"].hamming == made.distances["replicate"].rank_change == 0
    for k in range(1, 6):
        audited, shuffled = made.maps["audited"], made.maps[f"shuffled_{k}"]
        changed = [name for name in audited if audited[name] != shuffled[name]]
        assert made.distances[f"shuffled_{k}"].hamming == len(changed) >= 2
        assert made.distances[f"shuffled_{k}"].rank_change == sum(abs(audited[n] - shuffled[n]) for n in changed)


def test_uniform_arms_by_hand() -> None:
    shapes, ranks = varied()
    spectra = spectra_for(ranks)
    probe = dict.fromkeys(ranks, 16)
    for quantile, rank in ((0.0, 1), (0.5, 2), (0.6, 4), (0.9, 8), (1.0, 8)):
        assert set(uniform_map(spectra, shapes, probe, POLICY, quantile).values()) == {rank}
    probe[shapes[0].name] = 2
    assert uniform_map(spectra, shapes, probe, POLICY, 0.9)[shapes[0].name] == 2


def test_the_seed_of_the_generator_decides_the_shuffles_only() -> None:
    shapes, ranks = varied()
    spectra, probe = spectra_for(ranks), dict.fromkeys(ranks, 16)
    one, other = (
        allocate(spectra, shapes, probe, POLICY, shuffles=3, rng=np.random.default_rng(seed)) for seed in (0, 1)
    )
    differing = {arm for arm in one.maps if one.maps[arm] != other.maps[arm]}
    assert differing <= {"shuffled_1", "shuffled_2", "shuffled_3"}
    assert differing


def test_json() -> None:
    made = allocation(*varied(8))
    data = json.loads(json.dumps(made.to_json(), allow_nan=False))
    assert data["maps"] == made.maps
    assert data["distances"]["shuffled_1"]["hamming"] == made.distances["shuffled_1"].hamming
    assert int(data["distinct_permutations"]) == made.distinct_permutations > 2**53
    assert data["policy"]["allowed_ranks"] == list(LADDER)


def test_too_few_permutations_are_refused() -> None:
    shapes = llama_shapes(2)
    with pytest.raises(InvalidResult, match="in only 1 ways"):
        allocation(shapes, {shape.name: 4 for shape in shapes})


@pytest.mark.parametrize("missing", ["spectra", "probe", "shapes"])
def test_tables_that_disagree_are_refused(missing: str) -> None:
    shapes, ranks = varied()
    spectra, probe = spectra_for(ranks), dict.fromkeys(ranks, 16)
    last = shapes[-1].name
    if missing == "shapes":
        shapes = shapes[:-1]
    else:
        (spectra if missing == "spectra" else probe).pop(last)
    with pytest.raises(InvalidResult) as refused:
        audited_map(spectra, shapes, probe, POLICY)
    assert last in str(refused.value)
    assert ("names, beyond the targets" if missing == "shapes" else "leaves out") in str(refused.value)


def test_no_targets_and_doubled_targets_are_refused() -> None:
    shapes, ranks = varied()
    with pytest.raises(InvalidResult, match="no target modules"):
        audited_map({}, (), {}, POLICY)
    with pytest.raises(InvalidResult, match="not distinct"):
        audited_map(spectra_for(ranks), (*shapes, shapes[0]), dict.fromkeys(ranks, 16), POLICY)


def test_a_ladder_above_the_probe_is_refused() -> None:
    shapes, ranks = varied()
    with pytest.raises(StudyError, match="no allowed rank lies between min_rank 1 and the probe's rank 4"):
        audited_map(spectra_for(ranks), shapes, dict.fromkeys(ranks, 4), replace(POLICY, allowed_ranks=(8, 16)))


def test_the_check_of_parity_can_fail() -> None:
    with pytest.raises(InvalidResult, match=r"do not have its parameters; got \{'shuffled_2': 101\}; valid: 100"):
        check_parity({"audited": 100, "shuffled_1": 100, "shuffled_2": 101}, ["shuffled_1", "shuffled_2"])
