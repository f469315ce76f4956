"""What a study of low-rank compression allows one to say, on made-up measurements."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from low_rank_studies import QKV, SPECULATE, changed, laid, low_rank_study, the_cell, timing

from nullarm.analysis import Analysis, Finding
from nullarm.bench.runs import Run, run_table
from nullarm.bench.session import Session
from nullarm.bench.settings import BenchSettings
from nullarm.errors import StudyError
from nullarm.protocols.low_rank.analyse import analyse
from nullarm.protocols.low_rank.cells.measure import _blocks
from nullarm.protocols.low_rank.protocol import LowRank
from nullarm.protocols.low_rank.tables import EVALUATE, ITEMS, MEASURE, RUNS, TREATMENT
from nullarm.store.study_store import StudyStore
from nullarm.store.tables import BLOCKS
from nullarm.study.plan import Cell
from nullarm.study.spec import Study
from support.machines import SimulatedMachine, Trouble
from support.rehearsals import writer_of

SVD = {"method": {"kind": "svd"}, "slots": QKV, "budget": {"keep": 0.5}}
NOISE = 0.001
BENCH: dict[str, Any] = {"blocks": 10, "again_blocks": 4, "slowed_blocks": 3}
QUIET_SPEEDS = {"treatment": 40.0, "control": 40.0, "slowed": 40 / 1.05}

Speeds = Callable[[Cell], SimulatedMachine]


def quiet(cell: Cell) -> SimulatedMachine:
    return with_speeds(cell)


def faster(cell: Cell) -> SimulatedMachine:
    return with_speeds(cell, treatment=44.0)


def blind(cell: Cell) -> SimulatedMachine:
    """A slowdown that is there and does not show."""
    return with_speeds(cell, slowed=40.0)


def loaded(cell: Cell) -> SimulatedMachine:
    load = Trouble(foreign_cpus=1.0)
    return SimulatedMachine(np.random.default_rng(cell.seed), noise=NOISE, trouble=lambda run: load)


def with_speeds(cell: Cell, **speeds: float) -> SimulatedMachine:
    return SimulatedMachine(np.random.default_rng(cell.seed), noise=NOISE, speeds={**QUIET_SPEEDS, **speeds})


def session_runs(cell: Cell, machine: SimulatedMachine) -> list[Run]:
    session = Session(
        BenchSettings.model_validate(cell.parameters["bench"]), machine.run, machine.instruments,
        rng=np.random.default_rng(cell.seed), clock=machine.clock,
    )  # fmt: skip
    return [run for block in session.blocks() for run in block]


def judged(
    root: Path,
    asked: Study,
    *,
    shift: dict[str, float] | None = None,
    weights: dict[str, str] | None = None,
    speeds: dict[str, Speeds] | None = None,
    but: tuple[str, ...] = (),
) -> tuple[Analysis, StudyStore]:
    """The analysis of a study whose arms are shifted by so much in log-likelihood, and run weights of these names."""
    store = laid(root, asked)
    for cell in store.plan:
        if cell.stage in but or cell.arm in but:
            continue
        writer = writer_of(store, cell)
        if cell.stage == EVALUATE:
            name = str(cell.arm)
            rng = np.random.default_rng([cell.seed, cell.replicate or 0, *name.encode()])
            score = -2 + (shift or {}).get(name, 0.0) + NOISE * rng.normal(size=60)
            writer.table_artefact(ITEMS, pa.table({
                "item": [f"d{i // 3}/{i % 3}" for i in range(60)], "cluster": [f"d{i // 3}" for i in range(60)],
                "log_likelihood": score,
            }))  # fmt: skip
            ran = (weights or {}).get(name, name if cell.replicate is None else f"{name}-{cell.replicate}")
            writer.json_artefact(TREATMENT, {"weights": ran, "logits": ran, "bytes": 1, "slot_bytes": 1})
        elif cell.stage == MEASURE:
            runs = session_runs(cell, (speeds or {}).get(str(cell.slice), quiet)(cell))
            writer.table_artefact(RUNS, run_table(runs))
            writer.table_artefact(BLOCKS, _blocks(runs))
        writer.commit({})
    return analyse(store), store


def verdicts(found: Analysis) -> dict[str, str]:
    return {f.contrast.name: f.judgement.verdict.value for f in found.findings}


def finding(found: Analysis, name: str) -> Finding:
    return next(f for f in found.findings if f.contrast.name == name)


def pair(kind: str = "difference", name: str = "other", **more: Any) -> dict[str, Any]:
    return {"name": name, "treatment": "svd", "control": "compress", "kind": kind, "test": "paired_items", **more}


@pytest.mark.parametrize("shift", [-0.5, 0.5])
def test_a_difference_is_judged_on_both_sides(tmp_path: Path, shift: float) -> None:
    found, _ = judged(tmp_path / "s", low_rank_study({"svd": SVD}, (pair(),)), shift={"svd": shift})

    assert verdicts(found) == {"cost": "EQUIVALENT", "other": "DIFFERENT"}
    judgement = finding(found, "other").judgement
    assert judgement.estimate == pytest.approx(shift, abs=0.01)
    assert judgement.interval is not None
    assert judgement.interval.level == pytest.approx(0.95)
    assert (judgement.unit, judgement.n_seeds) == ("clusters", 20)


def test_arms_with_the_same_weights_are_one_arm_whatever_was_measured(tmp_path: Path) -> None:
    study = low_rank_study({"svd": SVD}, (pair(), timing("svd", "compress"), timing("svd", "baseline", "real")),
                           bench=BENCH)  # fmt: skip
    found, _ = judged(
        tmp_path / "s", study, shift={"svd": 0.5}, weights={"svd": "same-weights", "compress": "same-weights"},
        speeds={"speed": faster, "real": faster},
    )  # fmt: skip

    assert verdicts(found) == {"cost": "EQUIVALENT", "other": "NO_OP", "speed": "NO_OP", "real": "DIFFERENT"}
    reason = finding(found, "other").judgement.reason
    assert "Both arms, svd and compress, ran the same weights (SHA-256 same-weights)" in reason
    assert finding(found, "other").judgement.p is None


def test_arms_that_are_the_same_at_one_seed_only_are_not_one_arm(tmp_path: Path) -> None:
    study = changed({
        "factors": {"compression": {"svd": {"replicates": 2}}}, "parameters": {"compression": {"svd": SVD}},
        "analysis": {"contrasts": [*low_rank_study().model_dump(mode="json")["analysis"]["contrasts"], pair()]},
    })  # fmt: skip
    found, _ = judged(tmp_path / "s", study, weights={"compress": "svd-1"})

    assert verdicts(found)["other"] == "EQUIVALENT"


def test_speculation_is_no_change_of_what_is_written_but_of_how_fast(tmp_path: Path) -> None:
    same = {"name": "text", "treatment": "spec", "control": "baseline", "kind": "equivalence", "test": "paired_items"}
    study = low_rank_study({"spec": SPECULATE}, (same, timing("spec", "baseline")), bench=BENCH)
    found, _ = judged(tmp_path / "s", study, weights={"spec": "w", "baseline": "w"}, speeds={"speed": faster})

    assert verdicts(found) == {"cost": "EQUIVALENT", "text": "NO_OP", "speed": "DIFFERENT"}


def test_blocks_are_judged_as_log_ratios(tmp_path: Path) -> None:
    contrasts = (timing("compress", "baseline", "fast"), timing("baseline", "compress", "even", margin=0.005))
    found, store = judged(tmp_path / "s", low_rank_study(contrasts=contrasts, bench=BENCH), speeds={"fast": faster})

    assert verdicts(found) == {"cost": "EQUIVALENT", "fast": "DIFFERENT", "even": "EQUIVALENT"}
    fast = finding(found, "fast").judgement
    assert (fast.unit, fast.n_seeds) == ("blocks", 10)
    assert fast.estimate == pytest.approx(np.log(1.1), abs=0.002)
    assert finding(found, "even").judgement.margin == 0.005
    session = next(cell for cell in store.plan if cell.slice == "fast")
    assert finding(found, "fast").cells == (session.id,)
    told = found.to_json()["sessions"]
    assert {name: one["session"] for name, one in told.items()} == {"fast": "CLEAN", "even": "CLEAN"}


def test_a_contaminated_session_takes_its_own_contrast_with_it_and_no_other(tmp_path: Path) -> None:
    contrasts = (timing("compress", "baseline", "bad"), timing("baseline", "compress", "good"))
    study = low_rank_study(contrasts=contrasts, bench={**BENCH, "retries": 0})
    found, _ = judged(tmp_path / "s", study, shift={"compress": -0.5}, speeds={"bad": loaded, "good": faster})

    assert verdicts(found) == {"cost": "DIFFERENT", "bad": "INVALID", "good": "DIFFERENT"}
    assert "The session is contaminated" in finding(found, "bad").judgement.reason
    assert "17 of 17 blocks stayed contaminated" in finding(found, "bad").judgement.reason


def test_a_session_that_misses_a_slowdown_shows_no_null(tmp_path: Path) -> None:
    contrasts = (timing("compress", "baseline", "null"), timing("baseline", "compress", "found"))
    deaf: dict[str, Speeds] = {"null": blind, "found": lambda cell: with_speeds(cell, treatment=50.0, slowed=40.0)}
    found, _ = judged(tmp_path / "s", low_rank_study(contrasts=contrasts, bench=BENCH), speeds=deaf)

    assert verdicts(found) == {"cost": "EQUIVALENT", "null": "INVALID", "found": "DIFFERENT"}
    reason = finding(found, "null").judgement.reason
    why = "No null may be claimed: session null has not shown that it would have found a difference."
    assert reason == f"{why} The session is SUSPECT."


def test_the_sources_procedure_is_judged_unpaired_and_shows_no_null(tmp_path: Path) -> None:
    contrasts = (timing("compress", "baseline", "null", margin=0.1), timing("baseline", "compress", "found"))
    study = low_rank_study(contrasts=contrasts, bench={**BENCH, "procedure": "blocked"})
    found, _ = judged(tmp_path / "s", study, speeds={"found": faster})

    assert verdicts(found) == {"cost": "EQUIVALENT", "null": "INVALID", "found": "DIFFERENT"}
    assert finding(found, "found").judgement.test.startswith("Welch t")
    assert finding(found, "found").judgement.unit == "runs"


def test_a_study_that_says_nothing_of_its_bench_has_sessions_of_the_default(tmp_path: Path) -> None:
    asked = low_rank_study(contrasts=(timing("baseline", "compress"),)).model_dump(mode="json")
    del asked["parameters"]["bench"]
    found, store = judged(tmp_path / "s", Study.model_validate(asked), speeds={"speed": faster})
    assert verdicts(found) == {"cost": "EQUIVALENT", "speed": "DIFFERENT"}
    assert the_cell(store, MEASURE).parameters["bench"]["blocks"] == 10


def test_the_sources_procedure_is_one_session() -> None:
    with pytest.raises(StudyError, match=r"procedure blocked is one session.*got \[0, 1\]; valid: one seed"):
        LowRank().plan(two_seeds(bench={**BENCH, "procedure": "blocked"}))


def two_seeds(bench: dict[str, Any] = BENCH, **more: Any) -> Study:
    first = low_rank_study(bench=bench).model_dump(mode="json")
    contrasts = [first["analysis"]["contrasts"][0], timing("compress", "baseline")]
    return changed({
        "seeds": [0, 1], "parameters": {"bench": bench}, "analysis": {"contrasts": contrasts, **more}
    })  # fmt: skip


def test_sessions_at_several_seeds_are_further_blocks(tmp_path: Path) -> None:
    found, _ = judged(tmp_path / "s", two_seeds(), speeds={"speed": faster})

    assert verdicts(found) == {"cost": "EQUIVALENT", "speed": "DIFFERENT"}
    assert finding(found, "speed").judgement.n_seeds == 20
    assert len(finding(found, "speed").cells) == 2
    assert set(found.to_json()["sessions"]) == {"speed, seed 0", "speed, seed 1"}


def test_one_contaminated_session_of_two_is_enough(tmp_path: Path) -> None:
    found, _ = judged(tmp_path / "s", two_seeds(), speeds={"speed": lambda c: loaded(c) if c.seed else quiet(c)})

    assert verdicts(found) == {"cost": "EQUIVALENT", "speed": "INVALID"}


@pytest.mark.parametrize("missing", [MEASURE, "compress"])
def test_what_is_not_finished_has_no_verdict(tmp_path: Path, missing: str) -> None:
    study = low_rank_study({"svd": SVD}, (pair(), timing("svd", "baseline")), bench=BENCH)
    found, _ = judged(tmp_path / "s", study, weights={"svd": "w", "baseline": "w"}, but=(missing,))

    assert set(verdicts(found).values()) == {"INVALID"}
    assert "cells are not finished" in found.primary.judgement.reason


def test_a_smoke_run_has_sessions_and_no_verdict(tmp_path: Path) -> None:
    study = low_rank_study(contrasts=(timing("compress", "baseline"),), bench=BENCH).model_copy(update={"smoke": True})
    found, _ = judged(tmp_path / "s", study)

    assert set(verdicts(found).values()) == {"INVALID"}
    assert found.to_json()["sessions"]["speed"]["verdict"] == "EQUIVALENT"


def test_a_contrast_with_an_unfinished_arm_is_not_called_one_of_equal_arms(tmp_path: Path) -> None:
    """Where seeds may be dropped, verdicts are given while cells are missing."""
    study = changed({"factors": {"compression": {"svd": {}}}, "parameters": {"compression": {"svd": SVD}},
                     "analysis": {"incomplete": "drop_seed", "contrasts": [
                         *low_rank_study().model_dump(mode="json")["analysis"]["contrasts"], pair()]}})  # fmt: skip
    found, _ = judged(tmp_path / "s", study, but=("svd",))

    assert verdicts(found)["other"] != "NO_OP"
    assert verdicts(found)["cost"] == "EQUIVALENT"
