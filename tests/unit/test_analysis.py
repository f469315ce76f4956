"""From finished cells to verdicts: what is judged, on which cells, and when nothing may be said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from nullarm.analysis import analyse, least_attainable_p, pilot_noise, primary_effect, refusals
from nullarm.errors import InvalidResult, StudyError
from nullarm.store.study_store import StudyStore
from nullarm.study.plan import Cell
from support.rehearsals import laid_down, study, writer_of

SEEDS = {"seeds": [0, 1, 2, 3, 4, 5]}


def fill(
    store: StudyStore, effect: float, *, leave_out: int | None = None, clusters: bool = False, lone: int = 0
) -> None:
    """Finish all cells with planted scores: `effect` on the treated arm, small noise per cell.

    With `clusters` there are four of them, of which the first `lone` items are in none.
    """
    rng = np.random.default_rng(7)
    items = [f"item-{i}" for i in range(20)]
    for cell in store.plan:
        noise = rng.normal(size=len(items)) * 0.02
        if cell.seed == leave_out and cell.arm == "treated":
            continue
        table = pa.table({"item": items, "score": noise + effect * (cell.arm == "treated")})
        if clusters:
            table = table.append_column("cluster", pa.array([None if i < lone else f"c{i // 5}" for i in range(20)]))
        writer = writer_of(store, cell)
        if cell.stage == "measure":
            writer.table_artefact("items", table)
        writer.commit({})


def laid(tmp_path: Path, **changes: Any) -> StudyStore:
    return laid_down(tmp_path / "study", {**SEEDS, **changes})


@pytest.mark.parametrize("clusters", [False, True])
def test_planted_effect_is_confirmed_and_rests_on_its_cells(tmp_path: Path, clusters: bool) -> None:
    store = laid(tmp_path)
    fill(store, 0.3, clusters=clusters)
    finding = analyse(store, ("measure",)).primary
    assert finding.judgement.verdict == "CONFIRMED"
    assert finding.judgement.estimate == pytest.approx(0.3, abs=0.05)
    assert set(finding.cells) == {c.id for c in store.plan if c.stage == "measure"}


def test_no_effect_is_equivalent_only_inside_the_margin(tmp_path: Path) -> None:
    store = laid(tmp_path)
    fill(store, 0.0)
    assert analyse(store, ("measure",)).primary.judgement.verdict == "EQUIVALENT"


def test_incomplete_matrix_is_invalid_unless_the_analysis_says_otherwise(tmp_path: Path) -> None:
    store = laid(tmp_path)
    fill(store, 0.3, leave_out=3)
    judgement = analyse(store, ("measure",)).primary.judgement
    assert judgement.verdict == "INVALID"
    assert "1 of 18 cells are not finished, the first: seed 3 · treated" in judgement.reason

    dropped = laid_down(tmp_path / "other", {**SEEDS, "analysis.incomplete": "drop_seed"})
    fill(dropped, 0.3, leave_out=3)
    judgement = analyse(dropped, ("measure",)).primary.judgement
    assert judgement.verdict == "CONFIRMED"
    assert judgement.n_seeds == 5


def test_smoke_never_enters_a_verdict(tmp_path: Path) -> None:
    store = laid(tmp_path, smoke=True)
    fill(store, 0.3)
    judgement = analyse(store, ("measure",)).primary.judgement
    assert judgement.verdict == "INVALID"
    assert "smoke" in judgement.reason


def test_unmeasured_metric_names_what_is_measured(tmp_path: Path) -> None:
    store = laid(tmp_path, **{"analysis.metric": "accuracy"})
    fill(store, 0.3)
    with pytest.raises(StudyError, match=r"'accuracy' is not measured; valid: score"):
        analyse(store, ("measure",))


def test_the_same_store_is_judged_the_same_every_time(tmp_path: Path) -> None:
    store = laid(tmp_path)
    fill(store, 0.1)
    assert analyse(store, ("measure",)).to_json() == analyse(store, ("measure",)).to_json()


def test_analysis_changed_after_cells_ran_is_exploratory(tmp_path: Path) -> None:
    store = laid(tmp_path)
    store.declare_analysis()
    fill(store, 0.3)
    assert not analyse(store, ("measure",)).exploratory
    changed = laid_down(tmp_path / "study", {**SEEDS, "analysis.margin": 0.01})
    assert analyse(changed, ("measure",)).exploratory


def test_design_that_cannot_reach_alpha_is_refused_and_has_no_detectable_effect() -> None:
    few = study({"analysis.contrasts": [_randomised()], "analysis.expected_sd": 0.1})
    assert least_attainable_p(few) == {"effect": 0.25}
    assert "cannot give a p below 0.25" in refusals(few)[0]
    assert primary_effect(few) is None
    enough = study({**SEEDS, "analysis.contrasts": [_randomised()], "analysis.expected_sd": 0.1})
    assert refusals(enough) == ()
    effect = primary_effect(enough)
    assert effect is not None
    assert 0.05 < effect < 0.4


def test_pilot_noise_is_what_was_planted(tmp_path: Path) -> None:
    store = laid(tmp_path, **{"factors.arm.sham.replicates": 4})
    rng = np.random.default_rng(0)
    for cell in store.plan:
        writer = writer_of(store, cell)
        if cell.stage == "measure":
            writer.table_artefact("items", _shifted(cell, rng))
        writer.commit({})
    assert pilot_noise(store, ["sham"]).cell_sd == pytest.approx(0.2, rel=0.4)
    with pytest.raises(StudyError, match="no arm 'replicate'"):
        pilot_noise(store, ["replicate"])


def test_pilot_without_cells_says_so(tmp_path: Path) -> None:
    with pytest.raises(InvalidResult, match="no finished cell of sham"):
        pilot_noise(laid(tmp_path), ["sham"])


def _shifted(cell: Cell, rng: np.random.Generator) -> pa.Table:
    shift = 0.2 * rng.normal() + cell.seed
    return pa.table({"item": ["a", "b", "c"], "score": [shift, shift + 1.0, shift + 2.0]})


def _randomised() -> dict[str, object]:
    return {
        "name": "effect", "treatment": "treated", "control": "sham", "test": "within_seed_randomisation",
        "primary": True,
    }  # fmt: skip


def test_items_can_be_the_units_of_a_study_with_one_seed(tmp_path: Path) -> None:
    contrast = {"name": "effect", "treatment": "treated", "control": "sham", "test": "paired_items", "primary": True}
    changes: dict[str, Any] = {"seeds": [0], "analysis.contrasts": [contrast]}
    asked = study(changes)
    assert refusals(asked) == ()
    assert least_attainable_p(asked) == {"effect": None}
    assert primary_effect(asked) is None
    for clusters, unit, count in ((False, "items", 20), (True, "clusters", 4)):
        store = laid_down(tmp_path / unit, changes)
        fill(store, 0.3, clusters=clusters)
        judgement = analyse(store, ("measure",)).primary.judgement
        assert judgement.verdict == "CONFIRMED"
        assert (judgement.unit, judgement.n_seeds) == (unit, count)


def test_items_without_a_cluster_are_units_beside_the_clusters(tmp_path: Path) -> None:
    contrast = {"name": "effect", "treatment": "treated", "control": "sham", "test": "paired_items", "primary": True}
    store = laid_down(tmp_path / "study", {"seeds": [0], "analysis.contrasts": [contrast]})
    fill(store, 0.3, clusters=True, lone=7)  # the first of four clusters, and two items of the second
    judgement = analyse(store, ("measure",)).primary.judgement
    assert (judgement.unit, judgement.n_seeds) == ("clusters", 7 + 3)
