"""Faults of the original in its statistics and evaluation, each shown mended (see "Known faults" in the page)."""

from __future__ import annotations

import itertools
import json
import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from statistics import fmean, pstdev, stdev
from typing import Any

import pyarrow.parquet as pq
import pytest
from planted_store import ITEMS, by_arm, planted_store, planted_study

from nullarm.protocols.rank_mechanism.outputs import write_outputs
from nullarm.protocols.rank_mechanism.protocol import RankMechanism
from nullarm.store.study_store import StudyStore
from nullarm.store.tables import export_tables

LEVELS = {"helps": 0.7, "a little": 0.575, "nothing": 0.55, "harms": 0.4}


@pytest.fixture(scope="module", params=list(LEVELS))
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> StudyStore:
    arms = by_arm(probe=0.6, audited=LEVELS[request.param], shuffled=0.55, uniform_median=0.5)
    made = planted_store(tmp_path_factory.mktemp("faults") / "study", planted_study(), arms)
    export_tables(made)
    write_outputs(made, RankMechanism().analyse(made))
    return made


def read(store: StudyStore, name: str) -> Any:
    return json.loads((store.paths.output / name).read_text("utf-8"))


def randomisation_p(store: StudyStore) -> float:
    """By hand: each seed's audited run could have been any of its runs."""
    seeds = []
    for seed in store.lock.study.seeds:
        compressed = read(store, f"seed_{seed}/bench.json")["compressed"]
        shuffled = [r["accuracy"] for r in compressed["per_layer_shuffled"]["replicates"]]
        seeds.append([compressed["per_layer"]["accuracy"], *shuffled])

    def statistic(choice: tuple[int, ...]) -> float:
        picked = zip(seeds, choice, strict=True)
        return fmean(runs[i] - fmean(runs[:i] + runs[i + 1 :]) for runs, i in picked)

    arrangements = list(itertools.product(range(4), repeat=len(seeds)))
    observed = statistic((0,) * len(seeds))
    return sum(statistic(a) >= observed - 1e-12 for a in arrangements) / len(arrangements)


def test_fault_p_value_picked_from_a_list_of_three(store: StudyStore) -> None:
    benefit = read(store, "mechanism_analysis.json")["mechanism_benefit"]
    assert benefit["p_value"] == pytest.approx(randomisation_p(store))
    assert benefit["p_value"] not in (0.05, 0.30, 0.60)


def test_fault_p_value_of_05_tested_to_be_below_05(store: StudyStore) -> None:
    """The original could never be significant. Here a p below α is, and no other is."""
    benefit = read(store, "mechanism_analysis.json")["mechanism_benefit"]
    significant = benefit["p_adjusted"] < 0.05
    assert benefit["is_statistically_significant"] is significant
    first = read(store, "seed_42/bench.json")["summary"]["per_layer_minus_shuffled"]
    assert significant == (first > 0.1)


def test_fault_ddof_0(store: StudyStore) -> None:
    aggregated = read(store, "aggregated_results.json")
    per_layer = aggregated["compressed"]["per_layer"]
    for spread in (aggregated["probe"]["accuracy"], per_layer["accuracy"], per_layer["delta_vs_probe"]):
        assert spread["std"] == pytest.approx(stdev(spread["values"]))
        assert spread["std"] > 1.2 * pstdev(spread["values"])


def test_fault_no_per_item_predictions(store: StudyStore) -> None:
    measured = [cell for cell in store.plan if cell.arm]
    assert len(measured) == 3 * (1 + 1 + 3 + 1)
    with tarfile.open(store.paths.output / "mechanism_test_results.tar.gz") as tar:
        member = tar.extractfile("mechanism_test_results/study/items.parquet")
        assert member is not None
        table = pq.read_table(BytesIO(member.read()))
    assert {"item", "prediction", "target", "accuracy"} <= set(table.column_names)
    assert table["prediction"].null_count == 0
    for cell in measured:
        assert table["cell"].to_pylist().count(cell.id) == ITEMS


def gate_failure() -> Callable[..., str | None]:
    from nullarm.protocols.rank_mechanism.cells import _gate_failure

    return _gate_failure


@pytest.mark.parametrize(
    ("metrics", "passes"),
    [
        ({"dev_accuracy": 0.2, "test_accuracy": 0.9}, False),
        ({"dev_accuracy": 0.9, "test_accuracy": 0.2}, True),
        ({"dev_accuracy": 0.5}, True),
    ],
)
def test_fault_test_split_used_for_gating(metrics: dict[str, float], passes: bool) -> None:
    reason = gate_failure()({"metric": "accuracy", "min_value": 0.5}, metrics)
    assert (reason is None) == passes
    if reason:
        assert reason.startswith("UNDERTRAINED: the probe's dev accuracy is 0.2000, the gate asks for 0.5000")


def test_fault_test_split_used_for_gating_an_undertrained_probe_is_never_tested(tmp_path: Path) -> None:
    store = planted_store(tmp_path / "study", planted_study(), by_arm(), undertrained=True)
    write_outputs(store, RankMechanism().analyse(store))
    bench = read(store, "seed_42/bench.json")
    assert bench["probe_quality_gate"]["metric_key"] == "dev_accuracy"
    assert bench["probe"]["accuracy"] is None
