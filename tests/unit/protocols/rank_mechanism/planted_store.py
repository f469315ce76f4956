"""Study directories of finished cells with planted scores: everything but the training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa

from nullarm.models.facts import linear_shapes
from nullarm.protocols.rank_mechanism.allocate import AllocationPolicy, allocate
from nullarm.protocols.rank_mechanism.arms import AUDITED, PROBE, map_key
from nullarm.protocols.rank_mechanism.preflight import made_up_spectra
from nullarm.protocols.rank_mechanism.protocol import RankMechanism
from nullarm.protocols.rank_mechanism.ranks import ModuleShape, lora_parameters
from nullarm.store.cell import CellWriter
from nullarm.store.lease import Leases
from nullarm.store.study_store import StudyStore
from nullarm.study.load import merged
from nullarm.study.plan import Cell
from nullarm.study.spec import Study
from nullarm.study.validate import validated

ITEMS = 40
PROBE_RANK = 8
SHAPES = tuple(ModuleShape(name, i, o) for name, (i, o) in linear_shapes("builtin:world").items())

Accuracy = Callable[[Cell], float]
Wanted = Callable[[Cell], bool]

STUDY: dict[str, Any] = {
    "name": "planted",
    "question": "Does placement matter?",
    "protocol": "rank_mechanism",
    "seeds": [42, 43, 44],
    "factors": {
        "ranks": {
            "probe": {"role": "reference"},
            "audited": {},
            "shuffled": {"role": "control", "null": "placement does not matter", "replicates": 3},
            "uniform_median": {"role": "control", "null": "one rank does as well"},
        }
    },
    "parameters": {
        "model": "builtin:world",
        "task": {"kind": "world_relations"},
        "probe_rank": PROBE_RANK,
        "alpha": 16,
        "training": {"steps": 500, "batch_size": 4, "learning_rate": 1e-3},
        "gate": {"min_value": 0.15},
        "allocation": {"allowed_ranks": (1, 2, 4, 8)},
    },
    "analysis": {
        "metric": "accuracy",
        "margin": 0.01,
        "resamples": 200,
        "contrasts": [
            {"name": "mechanism", "treatment": "audited", "control": "shuffled", "primary": True,
             "test": "within_seed_randomisation"},
            {"name": "compression", "treatment": "audited", "control": "probe", "kind": "non_inferiority",
             "margin": 0.1},
        ],
    },
}  # fmt: skip


def planted_study(changes: Mapping[str, Any] | None = None) -> Study:
    """The small study, with changes laid over it."""
    return validated(Study, merged(STUDY, changes or {}), "planted.yaml")


def by_arm(**accuracy: float) -> Accuracy:
    """The arms' accuracies, a little different from seed to seed and from replicate to replicate."""

    def of(cell: Cell) -> float:
        own = 0.025 * (cell.seed % 2) if cell.arm == AUDITED else 0.025 * ((cell.replicate or 1) % 2)
        return accuracy[str(cell.arm)] + 0.025 * (cell.seed % 3) + own

    return of


def planted_store(
    root: Path, study: Study, accuracy: Accuracy, *, finished: Wanted = lambda cell: True, undertrained: bool = False
) -> StudyStore:
    """A study directory whose `finished` cells are there. With `undertrained`, every probe has failed its gate."""
    with mock.patch("os.fsync"):  # hundreds of small files that need not outlive a power cut
        return _planted(root, study, accuracy, finished, undertrained)


def _planted(root: Path, study: Study, accuracy: Accuracy, finished: Wanted, undertrained: bool) -> StudyStore:
    store = StudyStore.create(root, study, RankMechanism().plan(study))
    store.declare_analysis()
    allocations: dict[int, Any] = {}
    for cell in store.plan:
        if undertrained and cell.stage != "probe":
            continue
        if finished(cell):
            lease = store.claim(cell, Leases())
            assert lease is not None
            _write(CellWriter(store.paths.cell(cell.id), lease.attempt), cell, accuracy, allocations, undertrained)
    store.rebuild()
    return store


def items_table(accuracy: float) -> pa.Table:
    """Per-item measurements with the first items right: 40 items, so accuracies are multiples of 0.025."""
    right = np.arange(ITEMS) < round(accuracy * ITEMS)
    return pa.table(
        {
            "item": [f"item-{i}" for i in range(ITEMS)],
            "cluster": pa.array([None] * ITEMS, pa.string()),
            "accuracy": right.astype(float),
            "score": right.astype(float),
            "log_likelihood": np.where(right, -0.25, -1.5),
            "prediction": [str(i) if r else "?" for i, r in enumerate(right)],
            "target": [str(i) for i in range(ITEMS)],
        }
    )


def _write(writer: CellWriter, cell: Cell, accuracy: Accuracy, allocations: dict[int, Any], undertrained: bool) -> None:
    if cell.stage == "audit":
        writer.commit({"modules": len(SHAPES)})
    elif cell.stage == "allocate":
        allocations[cell.seed] = _allocation(cell)
        writer.json_artefact("allocation", allocations[cell.seed])
        writer.commit({})
    else:
        ranks = _ranks(cell, allocations)
        writer.json_artefact("ranks", ranks)
        value = 0.05 if undertrained else accuracy(cell)
        metrics = {"dev_accuracy": value, "lora_parameters": lora_parameters(ranks, SHAPES), "steps": 500}
        if undertrained:
            writer.commit(metrics, outcome="undertrained", reason="UNDERTRAINED: the probe's dev accuracy is 0.0500")
            return
        writer.table_artefact("items", items_table(value))
        writer.commit({**metrics, "test_accuracy": value}, seconds=12.5, provenance={"git": {"commit": "c0ffee"}})


def _allocation(cell: Cell) -> Any:
    rng = np.random.default_rng(cell.seed)
    probe = {shape.name: PROBE_RANK for shape in SHAPES}
    spectra = made_up_spectra(SHAPES, PROBE_RANK, rng)
    policy = AllocationPolicy(allowed_ranks=(1, 2, 4, 8))
    return allocate(spectra, SHAPES, probe, policy, shuffles=cell.parameters["shuffles"], rng=rng).to_json()


def _ranks(cell: Cell, allocations: Mapping[int, Any]) -> dict[str, int]:
    if cell.arm == PROBE:
        return {shape.name: PROBE_RANK for shape in SHAPES}
    ranks: dict[str, int] = allocations[cell.seed]["maps"][map_key(str(cell.arm), cell.replicate)]
    return ranks
