"""The report of a compression study: its tables and figures, of whole, broken and rehearsed studies."""

from __future__ import annotations

from collections import Counter
from math import exp
from pathlib import Path

import pytest
from low_rank_studies import changed, laid, the_cell
from made_up_compressions import LEVEL, RISES, STUDY, finish, finish_all

from nullarm.protocols.low_rank.analyse import analyse
from nullarm.protocols.low_rank.parameters import CompressionArm
from nullarm.protocols.low_rank.report.arms import arms
from nullarm.protocols.low_rank.report.document import document
from nullarm.protocols.low_rank.report.spectra import thinned
from nullarm.protocols.low_rank.report.words import arm_words
from nullarm.protocols.low_rank.results import ArmResult, arm_results, speculations
from nullarm.protocols.low_rank.sessions import timing_sessions
from nullarm.protocols.low_rank.tables import COMPRESS, EVALUATE, MEASURE
from nullarm.report import Document, Heatmap, IntervalPlot, Note, Plot, Series, Table, Text, write_html, write_markdown
from nullarm.report.blocks import Value
from nullarm.store.cell import Failure, write_failure
from nullarm.store.lease import Leases
from nullarm.store.study_store import StudyStore
from nullarm.study.plan import Cell
from support.machines import QUIET, Trouble
from support.rehearsals import writer_of


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> StudyStore:
    store = laid(tmp_path_factory.mktemp("report") / "study", STUDY)
    finish_all(store)
    return store


@pytest.fixture(scope="module")
def made(store: StudyStore) -> Document:
    return document_of(store)


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory: pytest.TempPathFactory) -> StudyStore:
    """Somebody else computes all the time from the 30th run on; two arms with the same weights differ in the text."""
    store = laid(tmp_path_factory.mktemp("disturbed") / "study", STUDY)
    finish_all(
        store, rises={**RISES, "gauged": 0.2501}, trouble=lambda run: Trouble(foreign_cpus=1.5) if run > 30 else QUIET
    )
    return store


def document_of(store: StudyStore) -> Document:
    return document(store, analyse(store))


def result(store: StudyStore, arm: str) -> ArmResult:
    (found,) = (one for one in arm_results(store, timing_sessions(store)) if one.arm == arm)
    return found


def table(made: Document, title: str) -> Table:
    (found,) = (b for s in made.sections for b in s.blocks if isinstance(b, Table) and b.title == title)
    return found


def line(made: Document, title: str, first: str) -> dict[str, Value]:
    found = table(made, title)
    return next(dict(zip(found.columns, row, strict=True)) for row in found.rows if row[0] == first)


def plot(made: Document, title: str) -> Plot:
    (found,) = (b for s in made.sections for b in s.blocks if isinstance(b, Plot) and b.title == title)
    return found


def series(of: Plot, panel: int = 0) -> dict[str, Series]:
    return {one.name: one for one in of.panels[panel].series}


def notes(made: Document) -> list[str]:
    return [b.text for s in made.sections for b in s.blocks if isinstance(b, Note)]


def test_results_of_an_arm(store: StudyStore) -> None:
    one = result(store, "compress")
    assert (one.bytes, one.slot_bytes, one.kept, one.peak_memory_bytes) == (2000, 500, 0.5, None)
    assert one.token_perplexity == pytest.approx(exp(LEVEL + 0.25))
    assert one.perplexity_interval is not None
    assert one.perplexity_interval.low < exp(LEVEL + 0.25) < one.perplexity_interval.high
    assert one.perplexity_interval.level == pytest.approx(0.9)
    assert one.rise == pytest.approx(0.25)
    assert one.rise_interval is not None
    assert (one.rise_interval.low, one.rise_interval.high) == pytest.approx((0.25, 0.25))
    assert one.cells == (the_cell(store, EVALUATE, "compress").id, the_cell(store, COMPRESS, "compress").id)


def test_an_arm_has_the_session_in_which_it_is_the_treatment(store: StudyStore) -> None:
    speed = result(store, "compress").speed
    assert speed is not None
    assert (speed.name, speed.contrast.control, speed.judgement.session) == ("speed", "baseline", "CLEAN")
    assert speed.ratio == pytest.approx(50 / 40, rel=0.01)
    assert speed.ratio_interval is not None
    assert speed.ratio is not None
    assert speed.ratio_interval.low < speed.ratio < speed.ratio_interval.high
    assert result(store, "baseline").speed is None
    assert result(store, "baseline").rise is None


def test_a_speculation_has_what_was_predicted_and_what_was_measured(store: StudyStore) -> None:
    (one,) = speculations(store, timing_sessions(store))
    assert (one.arm, one.metrics["predicted_speed_up"]) == ("spec", 1.125)
    assert one.speed is not None
    assert one.speed.ratio == pytest.approx(50 / 40, rel=0.01)


def test_sections(made: Document) -> None:
    assert [section.title for section in made.sections] == [
        "Effects against the margin", "The arms", "What bytes and speed cost", "Ranks by layer", "Timing sessions",
        "Speculative decoding", "Gauge and online basis", "One layer at a time", "Spectra", "Tolerances of the source",
        "Provenance",
    ]  # fmt: skip


def test_no_two_headings_are_alike(made: Document) -> None:
    titles = [b.title for s in made.sections for b in s.blocks if not isinstance(b, Text | Note)]
    assert [title for title, count in Counter(titles).items() if count > 1] == []


def test_contrasts_of_speed_have_their_own_unit_and_plot(made: Document) -> None:
    units = {card.name.partition(":")[0]: card.unit for card in made.verdicts}
    assert units == {"cost": "", "speed": "log ratio of tokens/s", "spec_speed": "log ratio of tokens/s"}
    plots = [b for b in made.sections[0].blocks if isinstance(b, IntervalPlot)]
    assert [(p.x_label, [row.label for row in p.rows]) for p in plots] == [
        ("difference in log_likelihood", ["compress − baseline"]),
        ("log ratio of tokens/s", ["compress − baseline", "spec − baseline"]),
    ]


def test_every_arm_says_what_it_is(made: Document) -> None:
    title = "What each arm is"
    assert line(made, title, "baseline")["method"] == "as loaded"
    assert line(made, title, "int8")["method"] == "int8, blocks of 64"
    assert line(made, title, "spec")["method"] == "compress drafts 3 tokens, the model as loaded verifies"
    assert line(made, title, "mcr")["method"] == "grc, ranks: mcr"
    assert line(made, title, "mcr")["treatment"] == "050005000500"
    assert line(made, title, "mcr")["remarks"] is None
    assert line(made, title, "gauged")["remarks"] == "same weights as compress"
    assert line(made, title, "compress")["remarks"] is None


def test_a_knob_that_is_not_the_usual_one_is_said() -> None:
    arm = {"slots": ["q"], "budget": {"rank": 2}}
    raw = CompressionArm.model_validate({**arm, "method": {"kind": "grc", "normalised": False}, "gauge": {}})
    assert arm_words(raw) == "grc, not normalised, gauge"
    assert (
        arm_words(CompressionArm.model_validate({**arm, "method": {"kind": "asvd", "alpha": 1}})) == "asvd, alpha 1.0"
    )


def test_a_control_states_its_null(tmp_path: Path) -> None:
    asked = changed({"factors": {"compression": {"baseline": {"role": "control", "null": "nothing is lost"}}}})
    store = laid(tmp_path / "study", asked)
    finish_all(store)
    made = document_of(store)
    assert line(made, "What each arm is", "baseline")["remarks"] == "null: nothing is lost"
    assert "Timing sessions" not in [section.title for section in made.sections]


def test_the_frontier_has_each_model_once(made: Document) -> None:
    assert [row[0] for row in table(made, "Frontier of bytes and perplexity").rows] == ["int8", "baseline"]
    assert series(plot(made, "Bytes against perplexity"))["frontier"].x == [300, 1000]
    drawn = series(plot(made, "Bytes against perplexity"))["reference and treated arms"]
    assert len(drawn.x) == len(set(RISES.values()))


def test_speed_against_perplexity_has_the_baseline_at_one(made: Document) -> None:
    points = series(plot(made, "Speed against perplexity"))["arms"]
    assert points.x[0] == 1.0
    assert [hover.partition(",")[0] for hover in points.hover] == ["baseline", "compress", "spec"]
    assert series(plot(made, "Speed against perplexity"))["frontier"].x == [points.x[2]]


def test_ranks_are_compared_where_nothing_but_their_allocation_differs(made: Document) -> None:
    figure = plot(made, "By layer, q+k+v: compress, mcr")
    assert [(name, one.y) for name, one in series(figure).items()] == [("compress", [16, 16]), ("mcr", [8, 24])]
    assert series(figure)["mcr"].hover == ["break-even 20", "break-even 20, above it"]
    assert series(figure, 2)["mcr"].y == [0.5 / 8, 0.5 / 24]
    lost = line(made, "What was lost of the matrices, mean over groups", "mcr")
    assert (lost["least rank"], lost["largest rank"], lost["bytes"], lost["above break-even"]) == (8, 24, 200, 1)
    assert line(made, "What was lost of the matrices, mean over groups", "int8")["least rank"] is None


def test_a_clean_session(made: Document) -> None:
    row = line(made, "What the sessions say", "speed")
    assert (row["verdict"], row["session"], row["blocks"]) == ("DIFFERENT", "CLEAN", 6)
    assert row["tok/s ratio"] == pytest.approx(1.25, rel=0.01)
    controls = line(made, "Whether the sessions would have seen a difference, and only one that is there", "speed")
    assert (controls["A/A verdict"], controls["slowed verdict"]) == ("EQUIVALENT", "DIFFERENT")
    assert controls["slowed"] == pytest.approx(1 / 1.05 - 1, rel=0.05)
    weather = line(made, "The weather of the sessions", "speed")
    assert (weather["runs"], weather["contaminated"]) == (48, 0)
    assert "Why sessions are not clean" not in [getattr(b, "title", "") for s in made.sections for b in s.blocks]


def test_the_trace_has_every_run_and_its_sentinels(store: StudyStore, made: Document) -> None:
    figure = plot(made, "speed: compress against baseline, run by run")
    assert [panel.title for panel in figure.panels] == ["tokens a second", "sentinel: GEMM", "sentinel: copy"]
    runs = timing_sessions(store)[0].runs
    assert set(series(figure)) == {"treatment", "control", "slowed control", "suspect", "contaminated"}
    assert sum(len(one.x) for one in series(figure).values()) == len(runs)
    assert series(figure, 1)["sentinel"].y[0] == pytest.approx(1000 * (runs[0].gemm_before or 0))


def test_a_disturbed_session_is_marked_and_says_why(disturbed: StudyStore) -> None:
    made = document_of(disturbed)
    assert line(made, "What the sessions say", "speed")["session"] == "CONTAMINATED"
    assert line(made, "What the sessions say", "speed")["verdict"] == "INVALID"
    assert line(made, "What the sessions say", "speed")["p"] is None
    assert {row[0]: row[1] for row in table(made, "Speculation").rows}["predicted speed-up, timed runs"] is None
    assert timing_sessions(disturbed)[0].judgement.estimate is not None
    assert line(made, "What each arm gains in speed", "compress")["tok/s ratio"] is None
    assert "Speed against perplexity" not in [getattr(b, "title", "") for s in made.sections for b in s.blocks]
    assert "foreign CPU load" in str(line(made, "Why sessions are not clean", "speed")["reason"])
    marked = series(plot(made, "speed: compress against baseline, run by run"))
    rejected = sum(run.state == "CONTAMINATED" for run in timing_sessions(disturbed)[0].runs)
    assert rejected > 10
    assert len(marked["contaminated"].x) == rejected
    assert any("foreign CPU" in hover for hover in marked["contaminated"].hover)
    sentinels = series(plot(made, "speed: compress against baseline, run by run"), 1)
    assert len(sentinels["contaminated"].x) == 2 * rejected


def test_speculation(made: Document) -> None:
    found = table(made, "Speculation")
    said = {row[0]: row[1] for row in found.rows}
    assert found.columns == ("", "spec")
    assert (said["drafter"], said["α"], said["predicted speed-up"]) == ("compress", 0.75, 1.125)
    assert said["measured speed-up"] == pytest.approx(1.25, rel=0.01)
    assert (said["α, timed runs"], said["predicted speed-up, timed runs"]) == (0.625, 1.375)
    assert said["texts equal to greedy"] == "2 of 3"
    assert any(note.startswith("spec: only 2 of 3 texts") for note in notes(made))
    by_position = series(plot(made, "Acceptance by position in the draft"))
    assert by_position["of all drafted"].y == [4 / 8, 2 / 8, 0]
    assert by_position["of those looked at"].y == [4 / 7, 2 / 7, 0]


def test_what_did_nothing_is_said_to(made: Document) -> None:
    assert any(note.startswith("gauged: g = 1, with matrices that only read") for note in notes(made))
    assert "frozen: no basis has moved." in notes(made)
    drift = series(plot(made, "Online: what the stream did"))["frozen"]
    assert drift.y == pytest.approx([0.6, 0.7])


def test_the_sweep_marks_ranks_above_break_even(made: Document) -> None:
    (chart,) = (b for s in made.sections for b in s.blocks if isinstance(b, Heatmap) and b.title == "svd: output error")
    first = chart.panels[0]
    assert (first.title, first.y, first.x) == ("q", ("1", "0"), ("16, 50\u00a0%", "24, 75\u00a0% ▲"))
    assert first.values == [[1 + 1 / 16, 1 + 1 / 24], [1 / 16, 1 / 24]]
    assert chart.caption.startswith("▲: above break-even")
    mean = line(made, "Sweep, mean over layers", "v")
    assert (mean["method"], mean["rank"], mean["above break-even"]) == ("svd", 24, True)
    assert mean["ΔNLL"] == pytest.approx(0.0)


def test_spectra_leave_out_what_is_rounding(made: Document) -> None:
    figure = plot(made, "Singular values of the weights")
    assert [panel.title for panel in figure.panels] == ["q, break-even 2", "v, break-even 2"]
    (layer, _) = figure.panels[0].series
    assert (layer.x, layer.y) == ([0.5, 1.0, 1.5], [1.0, 0.5, 0.25])
    assert line(made, "Ranks that hold so much of the energy, mean over layers", "q")["50 %"] == 1.5


def test_thinning_keeps_both_ends() -> None:
    assert thinned(range(32), 6) == [0, 6, 12, 19, 25, 31]
    assert thinned([3, 1], 6) == [3, 1]


def test_perplexities_of_one_model_are_compared(store: StudyStore, made: Document, disturbed: StudyStore) -> None:
    def kept(of: Document) -> dict[Value, Value]:
        rows = table(of, "What was measured twice").rows
        return {row[1]: row[-1] for row in rows if row[0] == "perplexity"}

    same = "compress and gauged and frozen"
    assert kept(made) == {"baseline and spec": True, same: True}
    assert kept(document_of(disturbed)) == {"baseline and spec": True, same: False}


def test_both_renderings(made: Document, tmp_path: Path) -> None:
    write_html(made, tmp_path / "report.html")
    write_markdown(made, tmp_path / "report.md")
    for name in ("report.html", "report.md"):
        text = (tmp_path / name).read_text()
        assert "050005000500" in text
        assert "What was measured twice" in text


def test_an_unfinished_study(tmp_path: Path) -> None:
    store = laid(tmp_path / "study", STUDY)
    empty = document_of(store)
    assert table(empty, "Without a result").rows == (
        (f"{len(store.plan)} more of {len(store.plan)} cells", "not begun"),
    )
    assert {card.verdict for card in empty.verdicts} == {"INVALID"}
    finish_all(store, but=(MEASURE, COMPRESS, "speculate", "spectra", "sweep"))
    half = document_of(store)
    assert [section.title for section in half.sections][1:3] == ["The arms", "What bytes and speed cost"]
    write_markdown(half, tmp_path / "half.md")


def test_a_failed_cell_is_named_with_its_reason(tmp_path: Path) -> None:
    store = laid(tmp_path / "study", STUDY)
    failed = the_cell(store, EVALUATE, "mcr")
    for cell in store.plan:
        if cell != failed:
            finish(store, cell)
    _fail(store, failed, "the <b>disk</b> is full")
    made = document_of(store)
    ((label, why),) = table(made, "Without a result").rows
    assert label == failed.label
    assert "the <b>disk</b> is full" in str(why)
    assert "mcr" not in [row[0] for row in table(made, "What each arm costs").rows]


def test_a_cell_without_a_usable_outcome_has_no_result(tmp_path: Path) -> None:
    store = laid(tmp_path / "study", STUDY)
    cell = the_cell(store, EVALUATE, "int8")
    writer_of(store, cell).commit({}, outcome="invalid", reason="a likelihood is no number")
    for other in store.plan:
        if other != cell:
            finish(store, other)
    results = arm_results(store, timing_sessions(store))
    assert "int8" not in [one.arm for one in results]
    first = next(arms(store, results))
    assert isinstance(first, Table)
    assert first.rows == ((cell.label, "invalid. a likelihood is no number"),)


def test_a_smoke_run_has_numbers_and_no_verdict(tmp_path: Path) -> None:
    store = laid(tmp_path / "study", STUDY.model_copy(update={"smoke": True}))
    finish_all(store)
    made = document_of(store)
    assert {card.verdict for card in made.verdicts} == {"INVALID"}
    assert {row[3] for row in table(made, "What the sessions say").rows} == {"INVALID"}
    assert any(note.startswith("A smoke run") for note in notes(made))
    assert any("smoke run, which never enters a verdict" in note for note in notes(made))
    assert line(made, "What each arm gains in speed", "compress")["tok/s ratio"] == pytest.approx(1.25, rel=0.01)


def _fail(store: StudyStore, cell: Cell, message: str) -> None:
    leases = Leases()
    lease = store.claim(cell, leases)
    assert lease is not None
    write_failure(store.paths.cell(cell.id), Failure(lease.attempt, "StorageError", message, 1))
    leases.release_all()
    store.observe(cell.id)
