from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from planted_store import by_arm, planted_store, planted_study

from nullarm.analysis import write_analysis
from nullarm.errors import IntegrityError
from nullarm.protocols.rank_mechanism.bench import is_bench_directory, judge_bench
from nullarm.protocols.rank_mechanism.outputs import write_outputs
from nullarm.protocols.rank_mechanism.protocol import RankMechanism
from nullarm.store.study_store import StudyStore
from nullarm.store.tables import export_tables

HELPS = by_arm(probe=0.6, audited=0.7, shuffled=0.55, uniform_median=0.5)


def written(store: StudyStore) -> str:
    return write_outputs(store, RankMechanism().analyse(store))


def read(store: StudyStore, name: str) -> Any:
    return json.loads((store.paths.output / name).read_text("utf-8"))


def all_files(directory: Path) -> dict[str, bytes]:
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def checksums(manifest: bytes) -> dict[str, str]:
    pairs = [line.split("  ") for line in manifest.decode().splitlines()]
    return {path: digest for digest, path in pairs}


def numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from numbers(part)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[StudyStore, str]:
    """A finished study whose audited map helps, and the block it printed."""
    store = planted_store(tmp_path_factory.mktemp("finished") / "study", planted_study(), HELPS)
    export_tables(store)
    write_analysis(store, RankMechanism().analyse(store))
    return store, written(store)


def test_the_closing_block_has_the_runbooks_parts_and_the_numbers_behind_the_verdict(
    finished: tuple[StudyStore, str],
) -> None:
    _, closing = finished
    lines = closing.splitlines()
    assert lines[0] == "OVERALL CONCLUSION"
    assert lines[1].startswith("HYPOTHESIS CONFIRMED: audit-guided ranks provide real benefit beyond heterogeneity")
    assert "per_layer          : 0.733 ± 0.029" in lines
    assert "per_layer_shuffled : 0.592 ± 0.025" in lines
    test = " ".join(lines[lines.index("MECHANISM BENEFIT TEST") :])
    assert "per_layer vs per_layer_shuffled: +0.142, 90 % interval [+0.0" in test
    assert (
        "p = 0.016 (adjusted 0.016), 3 seeds ✓ PASS: audit-guided placement provides real benefit (CONFIRMED)" in test
    )
    assert "per_layer vs probe: +0.083" in test


def test_bench_json_has_the_runbooks_fields(finished: tuple[StudyStore, str]) -> None:
    store, _ = finished
    bench = read(store, "seed_43/bench.json")
    assert {
        "bench_version", "timestamp", "git_commit", "env", "model", "task", "probe_quality_gate", "probe", "compressed",
        "summary", "config_metadata", "instrumentation", "protocol_invariants",
    } <= bench.keys()  # fmt: skip
    assert bench["probe_quality_gate"] == {
        "metric_key": "dev_accuracy", "metric_value": 0.65, "min_value": 0.15, "passed": True,
    }  # fmt: skip
    assert list(bench["compressed"]) == ["per_layer", "per_layer_shuffled", "uniform_median"]
    variant = bench["compressed"]["per_layer"]
    assert {
        "rank",
        "rank_pattern",
        "params",
        "accuracy",
        "delta_vs_probe",
        "param_reduction",
        "verdict",
        "rank_check",
    } <= (variant.keys())
    assert (variant["accuracy"], variant["delta_vs_probe"], variant["verdict"]) == (0.75, pytest.approx(0.1), "PASS")
    assert variant["param_reduction"] == pytest.approx(1 - variant["params"] / bench["probe"]["params"])
    assert len(variant["rank_pattern"]) == 21
    assert bench["compressed"]["uniform_median"]["rank"] in (1, 2, 4, 8)
    assert bench["git_commit"] == "c0ffee"
    assert bench["config_metadata"]["embedded_config"] == store.lock.study.model_dump(mode="json")
    assert bench["instrumentation"]["probe"][0]["seconds"] == 12.5
    assert bench["status"] == "OK"


def test_shuffles_are_averaged_within_their_seed_and_listed_one_by_one(finished: tuple[StudyStore, str]) -> None:
    store, _ = finished
    shuffled = read(store, "seed_42/bench.json")["compressed"]["per_layer_shuffled"]
    assert [r["accuracy"] for r in shuffled["replicates"]] == [0.575, 0.55, 0.575]
    assert shuffled["accuracy"] == pytest.approx(1.7 / 3)
    assert shuffled["rank_pattern"] is None
    assert all(r["rank_check"]["modules_unlike_per_layer"] > 0 for r in shuffled["replicates"])
    assert len({json.dumps(r["rank_pattern"]) for r in shuffled["replicates"]}) == 3


def test_invariants_hold_on_what_was_trained(finished: tuple[StudyStore, str]) -> None:
    store, _ = finished
    assert read(store, "seed_44/bench.json")["protocol_invariants"] == {
        "gate_split": "dev",
        "verdict_split": "test",
        "every_module_has_a_rank": True,
        "trained_as_planned": True,
        "shuffled_params_equal_per_layer": True,
        "shuffled_ranks_are_a_permutation": True,
        "shuffles_are_distinct": True,
        "same_test_items": True,
    }


def test_aggregates_are_over_seeds(finished: tuple[StudyStore, str]) -> None:
    store, _ = finished
    aggregated = read(store, "aggregated_results.json")
    assert aggregated["n_seeds"] == 3
    assert aggregated["probe"]["accuracy"]["values"] == pytest.approx([0.625, 0.65, 0.675])
    per_layer = aggregated["compressed"]["per_layer"]
    assert per_layer["delta_vs_probe"]["mean"] == pytest.approx(0.25 / 3)
    assert per_layer["accuracy"]["seeds"] == [42, 43, 44]
    assert per_layer["verdict"] == "CONFIRMED"
    assert aggregated["compressed"]["uniform_median"]["verdict"] is None
    assert aggregated["compressed"]["uniform_median"]["individual_verdicts"] == ["PASS", "PASS", "PASS"]
    assert aggregated["acc_tolerance"] == 0.1


def test_mechanism_analysis_has_the_runbooks_fields_and_the_declared_tests(finished: tuple[StudyStore, str]) -> None:
    store, _ = finished
    analysis = read(store, "mechanism_analysis.json")
    assert analysis.keys() == {
        "performance_data", "compression_efficacy", "mechanism_benefit", "experiment_metadata",
    }  # fmt: skip
    fields = {
        "effect_size_cohens_d", "t_statistic", "p_value", "is_statistically_significant",
        "is_practically_significant", "threshold_met", "interpretation",
    }  # fmt: skip
    benefit, efficacy = analysis["mechanism_benefit"], analysis["compression_efficacy"]
    assert fields | {"benefit"} <= benefit.keys()
    assert fields | {"delta"} <= efficacy.keys()
    assert benefit["p_value"] == 1 / 64
    assert benefit["benefit"] == pytest.approx(0.425 / 3)
    assert (benefit["verdict"], benefit["threshold_met"], benefit["threshold"]) == ("CONFIRMED", True, 0.01)
    assert efficacy["threshold"] == 0.1
    assert len(benefit["mcnemar"]) == 9
    assert benefit["mcnemar"][0] == {
        "seed": 42, "replicate": 1, "only_per_layer": 5, "only_shuffled": 0, "p_value": 2 / 2**5,
    }  # fmt: skip
    assert analysis["experiment_metadata"]["validation_level"] == "certifiable"
    assert analysis["experiment_metadata"]["n_shuffles"] == 3


def test_the_page_names_every_arm_and_contrast(finished: tuple[StudyStore, str]) -> None:
    store, _ = finished
    page = (store.paths.output / "bench.md").read_text("utf-8")
    for name in ("per_layer_shuffled", "uniform_median", "mechanism (primary)", "compression", "| 44 | OK |"):
        assert name in page


def test_the_tarball_is_whole_sorted_and_without_times_and_owners(finished: tuple[StudyStore, str]) -> None:
    store, _ = finished
    output = store.paths.output
    with tarfile.open(output / "mechanism_test_results.tar.gz") as tar:
        entries = tar.getmembers()
        inside = {e.name: tar.extractfile(e).read() for e in entries}  # type: ignore[union-attr]
    names = [entry.name for entry in entries]
    assert names == sorted(names)
    assert {(e.mtime, e.uid, e.gid, e.uname, e.gname) for e in entries} == {(0, 0, 0, "", "")}
    top = "mechanism_test_results"
    assert inside[f"{top}/seed_42/bench.json"] == (output / "seed_42/bench.json").read_bytes()
    assert inside[f"{top}/study/items.parquet"] == (store.paths.tables / "items.parquet").read_bytes()
    listed = checksums(inside[f"{top}/SHA256SUMS"])
    assert {f"{top}/{path}" for path in listed} == inside.keys() - {f"{top}/SHA256SUMS"}
    assert all(hashlib.sha256(inside[f"{top}/{path}"]).hexdigest() == digest for path, digest in listed.items())


def test_the_manifest_beside_holds_for_every_file_beside_it(finished: tuple[StudyStore, str]) -> None:
    store, _ = finished
    files = all_files(store.paths.output)
    listed = checksums(files.pop("SHA256SUMS"))
    assert {path: hashlib.sha256(data).hexdigest() for path, data in files.items()} == listed


def test_writing_again_gives_the_same_bytes(finished: tuple[StudyStore, str]) -> None:
    store, closing = finished
    before = all_files(store.paths.output)
    assert written(StudyStore.open(store.paths.root)) == closing
    assert all_files(store.paths.output) == before


def test_the_files_can_be_read_back_as_a_bench_directory(finished: tuple[StudyStore, str]) -> None:
    store, _ = finished
    assert is_bench_directory(store.paths.output)
    assert not is_bench_directory(store.paths.root)
    judged = judge_bench(store.paths.output)
    assert judged.estimate == pytest.approx(0.425 / 3)


def test_an_undertrained_study_says_so_and_invents_no_number(tmp_path: Path) -> None:
    store = planted_store(tmp_path / "study", planted_study(), HELPS, undertrained=True)
    closing = written(store)
    assert closing.splitlines()[1].startswith("UNDERTRAINED: at seed 42 the probe's dev accuracy is 0.0500")
    assert "per_layer          : — ± —   (0 of 3 seeds)" in closing
    bench = read(store, "seed_42/bench.json")
    assert bench["status"] == "UNDERTRAINED"
    assert bench["probe_quality_gate"]["passed"] is False
    assert bench["probe"]["accuracy"] is None
    assert bench["compressed"]["per_layer"]["accuracy"] is None
    assert bench["compressed"]["per_layer"]["verdict"] is None
    benefit = read(store, "mechanism_analysis.json")["mechanism_benefit"]
    assert benefit["verdict"] == "INVALID"
    assert [benefit[key] for key in ("benefit", "p_value", "t_statistic", "threshold_met")] == [None] * 4
    aggregated = read(store, "aggregated_results.json")["compressed"]["per_layer"]["accuracy"]
    assert aggregated == {"mean": None, "std": None, "values": [], "seeds": []}


def test_missing_cells_are_null_and_the_rest_is_kept(tmp_path: Path) -> None:
    store = planted_store(
        tmp_path / "study", planted_study(), HELPS, finished=lambda cell: cell.seed != 44 and cell.replicate != 2
    )
    closing = written(store)
    assert closing.splitlines()[1].startswith("NO CONCLUSION")
    assert "10 of 24 cells are not finished, the first: seed 44 · probe" in closing
    assert "per_layer          : 0.725 ± 0.035   (2 of 3 seeds)" in closing
    bench = read(store, "seed_42/bench.json")
    assert bench["status"] == "INCOMPLETE"
    assert bench["compressed"]["per_layer_shuffled"]["accuracy"] is None
    assert [r["accuracy"] for r in bench["compressed"]["per_layer_shuffled"]["replicates"]] == [0.575, None, 0.575]
    assert bench["protocol_invariants"]["shuffles_are_distinct"] is None
    assert read(store, "seed_44/bench.json")["timestamp"] is None
    accuracy = read(store, "aggregated_results.json")["compressed"]["per_layer"]["accuracy"]
    assert accuracy["seeds"] == [42, 43]


def test_a_study_without_any_cell_has_files_too(tmp_path: Path) -> None:
    store = planted_store(tmp_path / "study", planted_study(), HELPS, finished=lambda cell: False)
    assert "24 of 24 cells are not finished" in written(store)
    assert read(store, "seed_42/bench.json")["env"] == {}


def test_one_seed_left_is_judged_when_the_study_says_to_drop_seeds(tmp_path: Path) -> None:
    study = planted_study({"analysis": {"incomplete": "drop_seed"}})
    store = planted_store(tmp_path / "study", study, HELPS, finished=lambda cell: cell.seed == 42)
    closing = written(store)
    assert "NO CONCLUSION: there are too few data for a verdict" in closing


def test_a_smoke_run_has_numbers_but_no_test(tmp_path: Path) -> None:
    store = planted_store(tmp_path / "study", planted_study({"smoke": True}), HELPS)
    closing = written(store)
    assert closing.splitlines()[1].startswith("SMOKE RUN")
    benefit = read(store, "mechanism_analysis.json")["mechanism_benefit"]
    assert (benefit["p_value"], benefit["benefit"], benefit["mcnemar"]) == (None, None, [])
    assert read(store, "mechanism_analysis.json")["experiment_metadata"]["validation_level"] == "screening"
    assert judge_bench(store.paths.output).verdict == "INVALID"


def test_an_analysis_changed_afterwards_is_called_exploratory(tmp_path: Path) -> None:
    store = planted_store(tmp_path / "study", planted_study(), HELPS)
    lock = yaml.safe_load(store.paths.lock.read_text("utf-8"))
    lock["study"]["analysis"]["margin"] = 0.005
    store.paths.lock.write_text(yaml.safe_dump(lock), "utf-8")
    store = StudyStore.open(store.paths.root)
    assert "EXPLORATORY: the analysis was changed after cells had run" in written(store)
    assert "it is exploratory" in (store.paths.output / "bench.md").read_text("utf-8")


def test_another_declared_metric_stands_beside_accuracy(tmp_path: Path) -> None:
    store = planted_store(tmp_path / "study", planted_study({"analysis": {"metric": "log_likelihood"}}), HELPS)
    closing = written(store)
    assert "PERFORMANCE SUMMARY (accuracy and log_likelihood on test, mean ± sd over seeds)" in closing
    variant = read(store, "seed_42/bench.json")["compressed"]["per_layer"]
    assert variant["accuracy"] == 0.7 + 0.025 - 0.025
    assert variant["log_likelihood"] == pytest.approx(0.7 * -0.25 + 0.3 * -1.5)


def test_a_contrast_that_was_not_declared_is_null(tmp_path: Path) -> None:
    contrasts = [{"name": "compression", "treatment": "audited", "control": "probe", "primary": True}]
    store = planted_store(tmp_path / "study", planted_study({"analysis": {"contrasts": contrasts}}), HELPS)
    closing = written(store)
    assert "NO MECHANISM TEST was declared; contrast compression is CONFIRMED" in " ".join(closing.split())
    assert "not declared in this study" in closing
    benefit = read(store, "mechanism_analysis.json")["mechanism_benefit"]
    assert benefit["p_value"] is None
    assert list(numbers(benefit)) == []


def test_a_seed_taken_out_of_the_study_leaves_no_result_behind(tmp_path: Path) -> None:
    store = planted_store(tmp_path / "study", planted_study(), HELPS)
    written(store)
    fewer = planted_study({"seeds": [42, 43]})
    store = StudyStore.create(tmp_path / "study", fewer, RankMechanism().plan(fewer))
    written(store)
    assert sorted(p.parent.name for p in store.paths.output.glob("seed_*/bench.json")) == ["seed_42", "seed_43"]


def test_a_damaged_table_is_an_error_not_a_number(tmp_path: Path) -> None:
    store = planted_store(tmp_path / "study", planted_study(), HELPS)
    analysis = RankMechanism().analyse(store)
    cell = next(cell for cell in store.plan if cell.arm == "audited")
    table = next(store.paths.cell(cell.id).artefacts.glob("items-*"))
    sink = io.BytesIO(table.read_bytes())
    sink.seek(100)
    sink.write(b"\xff\x00\xff")
    table.write_bytes(sink.getvalue())
    with pytest.raises(IntegrityError, match=f"artefact 'items' of cell {cell.id} is not what its hash says"):
        write_outputs(store, analysis)
