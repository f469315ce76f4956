"""Stages run for real, on the built-in small world."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from low_rank_studies import BENCH, COMPRESS, QKV, SPECULATE, finished, laid, low_rank_study, ran, the_cell, timing
from low_rank_studies import weights_of as weights

from nullarm.bench.runs import State, runs_of
from nullarm.bench.session import Instruments
from nullarm.bench.weather import Reading
from nullarm.engines.inline import InlineEngine
from nullarm.errors import DatasetError, Preempted
from nullarm.models.load import load_causal_lm
from nullarm.models.texts.factory import make_text
from nullarm.protocols.base import CellContext
from nullarm.protocols.low_rank.cells import compress, evaluate, factorising, measure, speculate
from nullarm.protocols.low_rank.factored.checkpoint import load_compressed, read
from nullarm.protocols.low_rank.factored.install import install
from nullarm.protocols.low_rank.perplexity.likelihoods import window_likelihoods
from nullarm.protocols.low_rank.perplexity.measures import perplexities
from nullarm.protocols.low_rank.perplexity.streams import tokenise
from nullarm.protocols.low_rank.perplexity.windows import windows
from nullarm.protocols.low_rank.protocol import LowRank
from nullarm.protocols.low_rank.tables import (
    ACCEPTANCE,
    ERRORS,
    FACTORS,
    GROUPS,
    HISTORY,
    ITEMS,
    RANKS,
    RUNS,
    SINGULAR_VALUES,
    SPECULATION,
    TREATMENT,
    VARIANCE,
)
from nullarm.protocols.low_rank.timing import twin
from nullarm.runner import Runner
from nullarm.store.cell import CellWriter
from nullarm.store.lease import Leases
from nullarm.store.study_store import StudyStore
from nullarm.store.tables import BLOCKS
from nullarm.study.plan import Cell
from support.machines import SimulatedMachine

STREAM = {"blocks": 2, "block_tokens": 512}
ARMS: dict[str, Any] = {
    "spec": SPECULATE,
    "gauge": {**COMPRESS, "gauge": {}},
    "gauge_writers": {**COMPRESS, "slots": ["q", "k", "v", "o", "gate", "up", "down"], "gauge": {}},
    "writers": {**COMPRESS, "slots": ["q", "k", "v", "o", "gate", "up", "down"]},
    "difference": {**COMPRESS, "online": STREAM},
    "frozen": {**COMPRESS, "online": {**STREAM, "direction": "frozen"}},
    "random_online": {**COMPRESS, "online": {**STREAM, "direction": "random"}},
    "svd_llm": {"method": {"kind": "svd_llm"}, "slots": QKV, "budget": {"same_bytes_as": "compress"}},
    "int4": {"method": {"kind": "round_to_nearest", "bits": 4}, "slots": ["q", "down"]},
    "mcr": {**COMPRESS, "allocation": {"kind": "mcr"}},
    "mcr_flat": {**COMPRESS, "allocation": {"kind": "mcr", "flat_below": 1000}},
    "water_filling": {**COMPRESS, "allocation": {"kind": "water_filling"}},
}
SWEEP = {"methods": [{"kind": "svd"}, {"kind": "svd_llm"}], "slots": ["q", "down"], "keep": [0.75, 0.5], "windows": 3}


def study(**more: Any) -> Any:
    return low_rank_study(ARMS, (timing("spec", "baseline"),), sweep=SWEEP, **more)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> StudyStore:
    """Every stage, and every kind of arm."""
    return ran(tmp_path_factory.mktemp("many") / "study", study())


class Opened:
    """One attempt at a cell."""

    def __init__(self, store: StudyStore, cell: Cell, *, stop_after: int | None = None) -> None:
        self.leases, self.looked, self.stop_after = Leases(), 0, stop_after
        lease = store.claim(cell, self.leases)
        assert lease is not None
        needs = {role: done for role, need in cell.needs.items() if (done := store.finished(need))}
        writer = CellWriter(store.paths.cell(cell.id), lease.attempt)
        self.context = CellContext(cell, writer, needs, self.should_stop, lambda done, total, note: None)

    def should_stop(self) -> bool:
        self.looked += 1
        return self.stop_after is not None and self.looked > self.stop_after

    def run(self, stage: Callable[[CellContext], Any]) -> None:
        """Run to the end, or until the cell is stopped."""
        try:
            result = stage(self.context)
            self.context.writer.commit(result.metrics)
        except Preempted:
            assert self.stop_after is not None
        finally:
            self.leases.release_all()


def half_run(root: Path, asked: Any, wanted: tuple[str, str | None]) -> tuple[StudyStore, Cell]:
    """A study of which everything that one cell needs is finished."""
    store = laid(root, asked)
    cell = the_cell(store, *wanted)
    only = store.plan.closure([cell.id]) - {cell.id}
    Runner(store, InlineEngine(), only=only).run()
    return store, cell


def counted(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> Counter[str]:
    calls: Counter[str] = Counter()
    original = getattr(module, name)

    def counting(*args: Any, **more: Any) -> Any:
        calls[name] += 1
        return original(*args, **more)

    monkeypatch.setattr(module, name, counting)
    return calls


# what each stage hands on


def test_spectra_have_every_singular_value_of_every_matrix_twice(many: StudyStore) -> None:
    done = finished(many, "spectra")
    values, ranks = done.table(SINGULAR_VALUES), done.table(RANKS)

    assert len(ranks) == 3 * 7 * 2
    assert set(values["metric"].to_pylist()) == {"weight", "whitened"}
    assert len(values) == sum(min(row["rows"], row["columns"]) for row in ranks.to_pylist())
    assert done.table(VARIANCE)["layer"].to_pylist() == [0, 1, 2]
    assert min(done.table(VARIANCE)["variance"].to_pylist()) > 0


def test_a_sweep_has_every_matrix_at_every_rank(many: StudyStore) -> None:
    tables = [d.table(ERRORS) for c in many.plan if c.stage == "sweep" and (d := many.finished(c.id))]
    rows = [row for table in tables for row in table.to_pylist()]

    assert Counter(row["method"] for row in rows) == {"svd": 12, "svd_llm": 12}
    assert {row["slots"] for row in rows} == {"q", "down"}
    by = {(r["method"], r["layer"], r["slots"], r["rank"]): r["output_error"] for r in rows}
    for (method, *where), error in by.items():
        assert method == "svd" or error <= by["svd", where[0], where[1], where[2]] + 1e-6


def test_groups_tell_what_each_arm_keeps(many: StudyStore) -> None:
    for arm in ("compress", "svd_llm", "int4", "writers"):
        rows = finished(many, "compress", arm).table(GROUPS).to_pylist()
        saved = read(finished(many, "compress", arm).artefact(FACTORS)).compressed
        assert {(r["layer"], r["slots"]): r["bytes"] for r in rows} == {
            (layer, "+".join(slots)): made.nbytes for (layer, slots), made in saved.items()
        }
        assert all(0 < row["weight_error"] < 1 for row in rows)
        assert all(0 < row["output_error"] < 1 for row in rows)
        assert finished(many, "compress", arm).record.metrics["bytes"] == sum(row["bytes"] for row in rows)
    rounded = finished(many, "compress", "int4").table(GROUPS).to_pylist()
    assert {row["rank"] for row in rounded} == {row["break_even"] for row in rounded} == {None}
    same = [finished(many, "compress", arm).record.metrics["bytes"] for arm in ("compress", "svd_llm")]
    assert same[1] <= same[0]  # type: ignore[operator]
    errors = {
        arm: np.mean([r["output_error"] ** 2 for r in finished(many, "compress", arm).table(GROUPS).to_pylist()])
        for arm in ("compress", "svd_llm")
    }
    assert errors["svd_llm"] < errors["compress"]


def test_what_is_handed_on_loads_and_has_the_perplexity_that_was_measured(many: StudyStore) -> None:
    model, tokenizer = load_compressed(finished(many, "compress", "compress").artefact(FACTORS))
    text = make_text(the_cell(many, "evaluate", "compress").settings["text"]).documents("test")
    found = windows(tokenise(text, tokenizer), length=32, stride=32)
    rows = window_likelihoods(model, found, batch_size=4)
    done = finished(many, "evaluate", "compress")

    assert done.record.metrics["token_perplexity"] == pytest.approx(perplexities(rows).token, rel=1e-5)
    table = done.table(ITEMS)
    assert table["item"].to_pylist() == [row.item for row in rows]
    np.testing.assert_allclose(table["nll"].to_pylist(), [row.nll for row in rows], rtol=1e-4)
    likelihood = [-n / t for n, t in zip(table["nll"].to_pylist(), table["tokens"].to_pylist(), strict=True)]
    assert table["log_likelihood"].to_pylist() == likelihood


def test_bytes_are_counted_of_what_runs(many: StudyStore) -> None:
    told = {arm: finished(many, "evaluate", arm).json(TREATMENT) for arm in ("baseline", "compress", "int4")}
    kept = {arm: finished(many, "compress", arm).table(GROUPS).to_pylist() for arm in ("compress", "int4")}

    for arm, rows in kept.items():
        saved = sum(row["dense_bytes"] - row["bytes"] for row in rows)
        assert told[arm]["slot_bytes"] == told["baseline"]["slot_bytes"] - saved
        assert told[arm]["bytes"] == told["baseline"]["bytes"] - saved


# arms that do nothing, and arms that do something


def test_a_gauge_of_readers_alone_leaves_the_weights_as_they_are_and_with_writers_it_does_not(many: StudyStore) -> None:
    assert weights(many, "gauge") == weights(many, "compress")
    assert finished(many, "compress", "gauge").json(HISTORY)["gauge"]["moved"] == 0
    assert weights(many, "gauge_writers") != weights(many, "writers")
    assert finished(many, "compress", "gauge_writers").json(HISTORY)["gauge"]["moved"] > 0.01


def test_flat_zones_leave_the_weights_as_they_are_and_others_do_not(many: StudyStore) -> None:
    assert weights(many, "mcr_flat") == weights(many, "compress")
    assert len({weights(many, arm) for arm in ("compress", "mcr", "water_filling")}) == 3


def test_a_frozen_basis_leaves_the_weights_as_they_are_and_a_stream_does_not(many: StudyStore) -> None:
    assert weights(many, "frozen") == weights(many, "compress")
    assert len({weights(many, arm) for arm in ("compress", "difference", "random_online")}) == 3
    history = finished(many, "compress", "difference").json(HISTORY)["online"]
    assert {step["block"] for step in history} == {1, 2}


def test_the_errors_of_an_adapted_basis_are_those_after_it_was_adapted(many: StudyStore) -> None:
    errors = {
        arm: [row["weight_error"] for row in finished(many, "compress", arm).table(GROUPS).to_pylist()]
        for arm in ("compress", "frozen", "difference")
    }
    assert errors["frozen"] == errors["compress"]
    assert errors["difference"][0] == errors["compress"][0]  # the first layer reads what nothing has touched
    assert all(later > first for later, first in zip(errors["difference"][1:], errors["compress"][1:], strict=True))


def test_the_size_of_a_batch_and_of_a_block_of_layers_moves_nothing_but_rounding(
    many: StudyStore, tmp_path: Path
) -> None:
    arms = {name: ARMS[name] for name in ("difference", "svd_llm", "water_filling")}
    store = ran(tmp_path / "study", low_rank_study(arms, batch_size=3, layers_at_once=3))

    for arm in arms:
        here, there = (finished(s, "compress", arm) for s in (store, many))
        assert here.record.cell_id == there.record.cell_id
        first, second = (read(f.artefact(FACTORS)).compressed for f in (here, there))
        assert first.keys() == second.keys()
        errors = [[row["output_error"] for row in f.table(GROUPS).to_pylist()] for f in (here, there)]
        np.testing.assert_allclose(errors[0], errors[1], rtol=1e-3)


def test_draws_of_an_arm_differ(tmp_path: Path) -> None:
    study = low_rank_study({"r": {**COMPRESS, "online": {**STREAM, "direction": "random"}}})
    factors = {"compression": {**study.factors["compression"]}}
    factors["compression"]["r"] = factors["compression"]["r"].model_copy(update={"replicates": 2})
    store = ran(tmp_path / "study", study.model_copy(update={"factors": factors}))

    assert weights(store, "r", 1) != weights(store, "r", 2)


# going on after an interruption


def test_compression_goes_on_from_the_layers_that_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = low_rank_study({"g": {**ARMS["gauge_writers"], "slots": ["q", "o"]}})
    store, cell = half_run(tmp_path / "study", asked, ("compress", "g"))
    Opened(store, cell, stop_after=2).run(compress.run)
    assert store.finished(cell.id) is None
    calls = counted(monkeypatch, factorising, "gauged_factors")
    fits = counted(monkeypatch, factorising, "fit_gauge")
    Opened(store, cell).run(compress.run)

    assert calls["gauged_factors"] == 2  # q and o of the third layer
    assert fits["fit_gauge"] == 0
    whole = ran(tmp_path / "whole", asked)
    here, there = (finished(s, "compress", "g").record.artefacts for s in (store, whole))
    assert {name: a.sha256 for name, a in here.items()} == {name: a.sha256 for name, a in there.items()}


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_going_on_with_other_blocks_of_layers_leaves_none_out(tmp_path: Path, before: int, after: int) -> None:
    asked = low_rank_study({"w": ARMS["svd_llm"]}, layers_at_once=before)
    store, cell = half_run(tmp_path / "study", asked, ("compress", "w"))
    Opened(store, cell, stop_after=2).run(compress.run)
    changed_cell = replace(cell, settings={**cell.settings, "layers_at_once": after})
    assert changed_cell.id == cell.id
    Opened(store, changed_cell).run(compress.run)
    rows = finished(store, "compress", "w").table(GROUPS).to_pylist()
    assert [row["layer"] for row in rows] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    here = read(finished(store, "compress", "w").artefact(FACTORS)).compressed
    assert sorted({layer for layer, _ in here}) == [0, 1, 2]


def test_an_adapted_arm_that_was_stopped_ends_as_if_it_had_not(many: StudyStore, tmp_path: Path) -> None:
    store, cell = half_run(tmp_path / "study", study(), ("compress", "difference"))
    Opened(store, cell, stop_after=3).run(compress.run)  # all factors are there, before the stream
    assert store.finished(cell.id) is None
    Opened(store, cell).run(compress.run)

    here, there = (finished(s, "compress", "difference").record.artefacts for s in (store, many))
    assert {name: a.sha256 for name, a in here.items()} == {name: a.sha256 for name, a in there.items()}


def test_evaluation_goes_on_from_the_windows_that_are_there(
    many: StudyStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "WINDOWS_PER_CHUNK", 8)
    store, cell = half_run(tmp_path / "study", study(), ("evaluate", "compress"))
    Opened(store, cell, stop_after=1).run(evaluate.run)
    calls = counted(monkeypatch, evaluate, "window_likelihoods")
    Opened(store, cell).run(evaluate.run)

    number = len(finished(store, "evaluate", "compress").table(ITEMS))
    assert number > 16
    assert calls["window_likelihoods"] == -(-number // 8) - 1
    here, there = (finished(s, "evaluate", "compress").table(ITEMS) for s in (store, many))
    assert here["item"] == there["item"]
    np.testing.assert_allclose(here["nll"].to_numpy(), there["nll"].to_numpy(), rtol=1e-5)


# speculation


def test_greedy_speculation_writes_what_the_verifier_writes(many: StudyStore) -> None:
    done = finished(many, "speculate", "spec")
    metrics, rows = done.record.metrics, done.table(ACCEPTANCE).to_pylist()

    assert metrics["prompts"] == metrics["prompts_equal_to_greedy"] == 3
    assert metrics["drafted_tokens"] == sum(row["accepted"] for row in rows)
    assert metrics["drafted_tokens"] + metrics["verifier_tokens"] == 3 * 9  # type: ignore[operator]
    assert all(row["accepted"] <= row["judged"] <= row["proposed"] for row in rows)
    assert [(row["prompt"], row["position"]) for row in rows] == [(p, i) for p in range(3) for i in (1, 2, 3)]
    assert weights(many, "spec") == weights(many, "baseline")


def test_drawn_speculation_is_not_compared_and_does_not_hang_on_where_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = {"spec": {"speculation": {**SPECULATE["speculation"], "temperature": 1.0}}}
    tables = []
    for size in (1, 16):
        monkeypatch.setattr(speculate, "PROMPTS_PER_CHUNK", size)
        done = finished(ran(tmp_path / str(size), low_rank_study(said)), "speculate", "spec")
        assert done.record.metrics["prompts_equal_to_greedy"] is None
        tables.append(done.table(ACCEPTANCE))
    assert tables[0] == tables[1]


def test_prompts_that_are_not_there_are_missed_by_name(tmp_path: Path) -> None:
    said = {"spec": {"speculation": {**SPECULATE["speculation"], "prompts": 6, "prompt_tokens": 400}}}
    store, cell = half_run(tmp_path / "study", low_rank_study(said), ("speculate", "spec"))
    words = r"too few documents of 400 tokens; got 0; valid: at least speculation\.prompts, 6"
    with pytest.raises(DatasetError, match=words):
        Opened(store, cell).run(speculate.run)


# timing sessions


def test_a_session_that_is_killed_between_two_blocks_goes_on(tmp_path: Path) -> None:
    asked = low_rank_study(contrasts=(timing("compress", "baseline"),))
    store, cell = half_run(tmp_path / "study", asked, ("measure", None))
    first = Opened(store, cell, stop_after=3)
    first.run(measure.run)
    kept, _ = measure._committed(first.context)
    assert len(kept) == 12
    Opened(store, cell).run(measure.run)

    done = finished(store, "measure")
    runs = runs_of(done.table(RUNS))
    assert runs[:12] == kept
    assert [run.run for run in runs] == list(range(36))
    assert Counter((run.phase, run.arm) for run in runs) == {
        ("contrast", "treatment"): 10, ("contrast", "control"): 10, ("again", "treatment"): 4, ("again", "control"): 4,
        ("slowed", "treatment"): 4, ("slowed", "control"): 4,
    }  # fmt: skip
    undisturbed = finished(ran(tmp_path / "whole", asked), "measure").table(RUNS)
    order = ["run", "phase", "block", "attempt", "arm"]
    assert done.table(RUNS).select(order) == undisturbed.select(order)
    assert done.table(BLOCKS).column_names == ["item", "treatment", "control"]


@contextmanager
def quiet(device: torch.device, *, ours: int) -> Iterator[Instruments]:
    """Where nobody else computes."""
    machine = SimulatedMachine(np.random.default_rng(0))
    yield Instruments(lambda: Reading(0.002, 0.001), machine.watch)


def test_the_counts_of_a_session_outlive_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "instruments", quiet)
    asked = low_rank_study({"spec": SPECULATE}, (timing("spec", "baseline"),), bench={**BENCH, "tokens": 6})
    store, cell = half_run(tmp_path / "study", asked, ("measure", None))
    Opened(store, cell, stop_after=3).run(measure.run)
    Opened(store, cell).run(measure.run)
    told = finished(store, "measure").json(SPECULATION)

    assert list(told) == ["treatment"]
    spec = told["treatment"]
    assert (spec["runs"], spec["draft_length"]) == (10, 3)
    assert 6 * 10 == sum(spec["accepted"]) + spec["rounds"]  # greedy, to the end: one of the verifier's a round
    assert spec["tokens_per_round"] == 60 / spec["rounds"]
    assert spec["cost_ratio"] > 0
    assert spec["predicted_speed_up"] > 0


def test_a_session_in_which_nobody_speculates_hands_on_no_counts(tmp_path: Path) -> None:
    asked = low_rank_study(contrasts=(timing("compress", "baseline"),))
    assert SPECULATION not in finished(ran(tmp_path / "study", asked), "measure").record.artefacts


def test_the_blocks_of_a_session_are_mean_logarithms_of_runs_that_may_be_believed(many: StudyStore) -> None:
    runs = runs_of(finished(many, "measure").table(RUNS))
    believed = [replace(run, state=State.CONTAMINATED if run.block == 2 else State.CLEAN) for run in runs]
    rows = measure._blocks(believed).to_pylist()

    assert {row["item"] for row in rows} == {"block 0", "block 1", "block 3", "block 4"}
    for row in rows:
        for arm in ("treatment", "control"):
            where = ("contrast", int(row["item"][-1]), arm)
            speeds = [run.tokens_per_s for run in runs if (run.phase, run.block, run.arm) == where]
            assert row[arm] == pytest.approx(np.log(speeds).mean())


def test_a_session_without_a_run_that_may_be_believed_has_no_blocks(many: StudyStore) -> None:
    runs = runs_of(finished(many, "measure").table(RUNS))
    disturbed = [replace(run, state=State.CONTAMINATED) for run in runs]
    table = measure._blocks(disturbed)

    assert len(table) == 0
    assert [str(t) for t in table.schema.types] == ["string", "double", "double"]


def test_a_twin_has_the_same_tensors_and_leaves_the_original_alone(many: StudyStore) -> None:
    model, _ = load_causal_lm("builtin:world")
    ids = torch.arange(1, 9)[None]
    with torch.no_grad():
        before = model(input_ids=ids).logits
    modules = {name: type(module) for name, module in model.named_modules()}
    other = twin(model)
    tensors = {t.data_ptr() for t in model.parameters()}

    assert {t.data_ptr() for t in other.parameters()} == tensors
    install(other, read(finished(many, "compress", "compress").artefact(FACTORS)).compressed)
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, before)
        assert not torch.equal(other(input_ids=ids).logits, before)
    assert {name: type(module) for name, module in model.named_modules()} == modules
    assert {t.data_ptr() for t in model.parameters()} == tensors


def test_a_train_split_shorter_than_a_window_is_refused(tmp_path: Path) -> None:
    short = {"kind": "world", "train_documents": 1, "test_documents": 6, "document_length": 1}
    store, cell = half_run(tmp_path / "study", low_rank_study(text=short, window=512), ("spectra", None))
    with pytest.raises(DatasetError, match=r"the train split is shorter than a window; got \d+; valid: at least 512"):
        Opened(store, cell).run(LowRank().run_cell)
