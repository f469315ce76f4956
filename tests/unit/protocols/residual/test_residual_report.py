from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import TypeVar

import pytest

from nullarm.analysis import Analysis
from nullarm.protocols.residual.report import hottest as report_hottest
from nullarm.protocols.residual.report import maps as report_maps
from nullarm.protocols.residual.report import tracked as report_tracked
from nullarm.protocols.residual.report.document import document
from nullarm.protocols.residual.report.entries import captures, detailed, groups, members
from nullarm.protocols.residual.report.hotspots import hotspots, layer_shares, shares
from nullarm.protocols.residual.report.maps import prompt_label, token_label
from nullarm.protocols.residual.runs import multi_pass, single_pass
from nullarm.report import Block, Document, Heatmap, Note, Plot, PlotPanel, Table, Text, write_html, write_markdown
from nullarm.store.journal import Change
from nullarm.store.study_store import StudyStore
from nullarm.study.plan import make_plan
from nullarm.study.spec import Contrast
from support import captures as synthetic
from support.captures import TOKENS, TRACKED_TOKENS, capture_store, finish_capture, logit, scalar, shift

PAIR = single_pass().comparisons[0].name
ARMS = ("little", "sham")
Kind = TypeVar("Kind", bound=Block)


def finished_store(root: Path, arms: Sequence[str] = ARMS, *, factorial: bool = False) -> StudyStore:
    """A study whose captures have all run; `sham` is the control of the first arm."""
    passes = multi_pass() if factorial else single_pass()
    store = capture_store(root, arms, passes=passes)
    for cell in store.plan:
        finish_capture(store, cell, passes=passes)
    return store


def report_of(store: StudyStore) -> Document:
    return document(store, Analysis((), False, "hash"))


def blocks(shown: Document, section: str, kind: type[Kind]) -> list[Kind]:
    return [b for s in shown.sections if s.title == section for b in s.blocks if isinstance(b, kind)]


def titled(found: Sequence[Kind], start: str) -> Kind:
    return next(b for b in found if isinstance(b, Plot | Table | Heatmap) and b.title.startswith(start))


def panels(plot: Plot) -> dict[str, PlotPanel]:
    return {panel.title: panel for panel in plot.panels}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> StudyStore:
    return finished_store(tmp_path_factory.mktemp("single") / "study")


@pytest.fixture(scope="module")
def shown(store: StudyStore) -> Document:
    return report_of(store)


@pytest.fixture(scope="module")
def factorial(tmp_path_factory: pytest.TempPathFactory) -> Document:
    return report_of(finished_store(tmp_path_factory.mktemp("factorial") / "study", factorial=True))


def test_sections_stand_in_order_and_can_be_written(shown: Document, factorial: Document, tmp_path: Path) -> None:
    own = ["What was compared", "Layer by layer", "Layer by position", "Hotspots", "Tracked tokens"]
    assert [s.title for s in shown.sections][1:-1] == own
    assert shown.subtitle == "protocol residual · 1 seed · metric kl_div"
    assert [s.title for s in factorial.sections][1:-1] == [*own[:4], "Embedding, body, unembedding", own[4]]
    for found in (shown, factorial):
        write_html(found, tmp_path / "report.html")
        write_markdown(found, tmp_path / "report.md")
        text = (tmp_path / "report.html").read_text(encoding="utf-8")
        assert "\x1b" not in text
        assert "‖fine-tuned − base‖" in text


def test_every_chart_cites_its_cells(shown: Document, factorial: Document) -> None:
    for found in (shown, factorial):
        plots = [b for s in found.sections[1:-1] for b in s.blocks if isinstance(b, Plot)]
        maps = [b for s in found.sections[1:-1] for b in s.blocks if isinstance(b, Heatmap)]
        assert plots
        assert all(series.cells for plot in plots for panel in plot.panels for series in panel.series)
        assert maps
        assert all(panel.cells for chart in maps for panel in chart.panels)


def test_models_and_the_instrument_check_are_named(shown: Document, store: StudyStore) -> None:
    found = blocks(shown, "What was compared", Table)
    assert titled(found, "Pairs of models").rows == (
        ("little", "org/little", synthetic.SFT, "trained", "float32"),
        ("sham (control)", "org/little", synthetic.SFT, "trained", "float32"),
    )
    assert titled(found, "What was read").rows[0] == ("little", 2, 8, "norm", 2, 2, 10, 0, 0)
    check = titled(found, "Instrument check")
    assert check.columns[3] == "largest kl_div"
    assert check.rows[0] == ("little", 0, None, 0.0, None, "ok")
    assert check.cells == tuple((cell.id,) for cell in store.plan)


def test_a_trajectory_shows_treatment_and_control_with_intervals(shown: Document, store: StudyStore) -> None:
    plot = titled(blocks(shown, "Layer by layer", Plot), "Base against fine-tuned")
    rows = store.finished(next(iter(store.plan)).id).table("layers").to_pylist()  # type: ignore[union-attr]
    expected = [row for row in rows if (row["record"], row["metric"]) == (PAIR, "js")]
    treatment, control = panels(plot)["Jensen–Shannon divergence"].series
    assert (treatment.name, control.name) == ("little", "sham (control)")
    assert list(treatment.x) == [-1, 0, 1]
    assert list(treatment.y) == [row["value"] for row in expected]
    assert list(treatment.y_interval) == [(row["low"], row["high"]) for row in expected]
    assert panels(plot)["Jensen–Shannon divergence"].y != panels(plot)["cosine of the two residuals"].y
    assert "a prompt's positions and variants are averaged first" in plot.caption


def test_both_runs_of_an_entry_stand_in_one_panel(shown: Document) -> None:
    plot = titled(blocks(shown, "Layer by layer", Plot), "Entropy")
    assert [panel.title for panel in plot.panels] == ["little", "sham (control)"]
    assert all([series.name for series in panel.series] == ["base", "fine-tuned"] for panel in plot.panels)


def test_refused_metrics_are_listed_with_their_reason_and_not_drawn(tmp_path: Path) -> None:
    store = capture_store(tmp_path / "study", ARMS)
    for cell in store.plan:
        finish_capture(store, cell, refused=["cosine", "direct_diff"])
    shown = report_of(store)
    refused = titled(blocks(shown, "What was compared", Table), "Refused metrics")
    assert ("little", "cosine", "the widths differ: 8 and 16") in refused.rows
    drawn = panels(titled(blocks(shown, "Layer by layer", Plot), "Base against fine-tuned"))
    assert "cosine of the two residuals" not in drawn
    assert [
        block.title for s in shown.sections if s.title == "Hotspots" for block in s.blocks if isinstance(block, Table)
    ] == ["Largest divergences"]
    assert not [b for b in blocks(shown, "Layer by position", Heatmap) if "by the layer itself" in b.title]


def notes(shown: Document) -> str:
    return "\n".join(note.text for note in blocks(shown, "What was compared", Note))


def test_a_capture_that_failed_is_named_with_its_reason(tmp_path: Path) -> None:
    store = capture_store(tmp_path / "study", ("little", "broken", "sham"))
    for cell in store.plan:
        if cell.arm == "broken":
            store.journal.update([Change(cell.id, "failed", 1, message="CUDA out of memory")])
        else:
            finish_capture(store, cell)
    assert "seed 0 · broken has no finished capture: failed. CUDA out of memory" in notes(report_of(store))


def test_a_capture_whose_instrument_check_failed_is_not_drawn(tmp_path: Path) -> None:
    store = capture_store(tmp_path / "study", ARMS)
    little, sham = store.plan
    finish_capture(store, little)
    finish_capture(store, sham, outcome="invalid")
    shown = report_of(store)
    assert "seed 0 · sham is not drawn: the null is not null" in notes(shown)
    assert "little is shown without its control, which has no usable capture." in notes(shown)
    plot = titled(blocks(shown, "Layer by layer", Plot), "Base against fine-tuned")
    assert {series.name for panel in plot.panels for series in panel.series} == {"little"}
    check = titled(blocks(shown, "What was compared", Table), "Instrument check")
    assert [row[-1] for row in check.rows] == ["ok", "invalid"]


def test_a_study_without_a_finished_capture_has_a_report(tmp_path: Path) -> None:
    shown = report_of(capture_store(tmp_path / "study", ARMS))
    assert "seed 0 · little has no finished capture: pending." in notes(shown)
    assert [s.title for s in shown.sections] == ["Effects against the margin", "What was compared", "Provenance"]


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Heatmap:
    """The map of js where it is largest in the second prompt."""

    def larger(prompt: int, *where: str | int) -> float | None:
        return 99.0 if (prompt, *where) == (1, "identity", PAIR, 1, 2, "js") else scalar(prompt, *where)  # type: ignore[arg-type]

    monkeypatch.setattr(synthetic, "scalar", larger)
    shown = report_of(finished_store(tmp_path / "study"))
    return titled(blocks(shown, "Layer by position", Heatmap), "little: Jensen–Shannon divergence")


def test_maps_show_the_first_prompt_and_the_one_that_differs_most(planted: Heatmap, shown: Document) -> None:
    names = ("little", "sham (control)")
    assert [panel.title for panel in planted.panels] == [f"prompt {p} · {name}" for p in (0, 1) for name in names]
    assert "Prompt 1 has the largest divergence at a single place." in planted.caption
    assert "Prompt 0: “word0word1word2”. Prompt 1: “word0word1word2word3”." in planted.caption
    panel = planted.panels[2]
    assert panel.y == ("1", "0", "−1")
    assert panel.x == ("0 word0", "1 word1", "2 word2", "3 word3")
    assert panel.values[0][2] == 99.0
    assert panel.values[1:] == [[scalar(1, "identity", PAIR, i, p, "js") for p in range(4)] for i in (0, -1)]
    assert panel.cells == planted.panels[0].cells != planted.panels[3].cells
    same = titled(blocks(shown, "Layer by position", Heatmap), "little: Jensen–Shannon divergence")
    assert [panel.title for panel in same.panels] == [f"prompt 0 · {name}" for name in names]


def test_hovering_shows_the_decoded_tokens_that_moved(planted: Heatmap) -> None:
    moved = [shift(1, PAIR, 1, 2, rank) for rank in range(synthetic.TOP_K)]
    up, down = planted.panels[2].hover[0][2].split("\n")
    assert up == "up: " + ", ".join(f'"word{token}" {value:+.2f}' for token, value in moved)
    assert down == "down: " + ", ".join(f'"word{token}" {-value:+.2f}' for token, value in moved)
    assert planted.panels[2].hover[2] == ["", "", "", ""]  # the embedding output has no lists


def test_of_a_long_prompt_the_part_around_its_largest_divergence_is_shown(
    store: StudyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_maps, "POSITIONS", 2)
    js = titled(blocks(report_of(store), "Layer by position", Heatmap), "little: Jensen–Shannon divergence")
    assert "Of a longer prompt the 2 positions around its largest divergence are shown." in js.caption
    for prompt, panel in enumerate(js.panels[::2]):
        values = {
            (i, p): scalar(prompt, "identity", PAIR, i, p, "js") or 0.0
            for i in range(-1, synthetic.BLOCKS)
            for p in range(len(TOKENS[prompt]))
        }
        assert len(panel.x) == 2
        assert max(v for row in panel.values for v in row if v is not None) == max(values.values())


def test_maps_end_where_the_page_would_grow_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_maps, "MOST_VALUES", 1)
    shown = report_of(finished_store(tmp_path / "study", ("little", "sham", "other", "third")))
    assert {b.title.split(":")[0] for b in blocks(shown, "Layer by position", Heatmap)} == {"little"}
    (note,) = blocks(shown, "Layer by position", Note)
    assert note.text == "Not mapped, to keep the page readable: other, third. Their numbers are in the tables."


def test_another_variant_is_shown_when_prompts_were_not_read_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synthetic, "VARIANTS", ("mirror_halves",))
    shown = report_of(finished_store(tmp_path / "study"))
    js = titled(blocks(shown, "Layer by position", Heatmap), "little: Jensen–Shannon divergence")
    assert "Prompts are shown under variant mirror_halves." in js.caption
    assert js.panels[0].values[0][0] == scalar(0, "mirror_halves", PAIR, 1, 0, "js")


def test_a_layer_without_measurements_has_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def from_the_first_block(*where: str | int) -> float | None:
        return None if where[3] == -1 and where[5] == "js" else scalar(*where)  # type: ignore[arg-type]

    monkeypatch.setattr(synthetic, "scalar", from_the_first_block)
    found = blocks(report_of(finished_store(tmp_path / "study")), "Layer by position", Heatmap)
    assert titled(found, "little: Jensen–Shannon divergence").panels[0].y == ("1", "0")
    assert titled(found, "little: relative difference").panels[0].y == ("1", "0", "−1")


@pytest.mark.parametrize(("text", "label"), [(" hat", " hat"), ("\n", "⏎"), ("a\tb", "a⇥b"), ("  ", "␣␣"), ("", "")])
def test_blank_tokens_can_be_seen(text: str, label: str) -> None:
    assert token_label(text) == label


def test_a_long_prompt_is_named_by_its_beginning() -> None:
    assert prompt_label(3, ["What", " is\n", " it?"]) == "Prompt 3: “What is it?”."
    assert prompt_label(3, ["ab"] * 99) == f"Prompt 3: “{'ab' * 35}a…”."


def test_an_entry_without_a_line_keeps_its_place_so_that_colours_stay(
    store: StudyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = shares
    monkeypatch.setattr(report_hottest, "shares", lambda c: {} if c.about["entry"] == "little" else known(c))
    line = titled(blocks(report_of(store), "Hotspots", Plot), "Where the change was made").panels[0].series
    assert [series.name for series in line] == ["little", "sham (control)"]
    assert [len(series.x) for series in line] == [0, 3]


def test_an_entry_without_a_metric_keeps_its_place(tmp_path: Path) -> None:
    store = capture_store(tmp_path / "study", ARMS)
    little, sham = store.plan
    finish_capture(store, little, refused=["cosine"])
    finish_capture(store, sham)
    plot = titled(blocks(report_of(store), "Layer by layer", Plot), "Base against fine-tuned")
    assert [len(series.x) for series in panels(plot)["cosine of the two residuals"].series] == [0, 3]


def test_hotspots_are_tabled_and_layers_that_made_the_change_come_first(shown: Document, store: StudyStore) -> None:
    first = store.finished(next(iter(store.plan)).id)
    assert first is not None
    by_layer, spots = layer_shares(first), hotspots(first, "direct_diff", 5)
    plot = titled(blocks(shown, "Hotspots", Plot), "Where the change was made")
    assert dict(zip(plot.panels[0].series[0].x, plot.panels[0].series[0].y, strict=True)) == by_layer
    leading = titled(blocks(shown, "Hotspots", Table), "Layers that changed most")
    best = max(by_layer, key=lambda layer: by_layer[layer])
    assert leading.rows[0] == ("little", best, by_layer[best])
    table = titled(blocks(shown, "Hotspots", Table), "Largest changes")
    assert [row[1:4] for row in table.rows[:5]] == [(s.value, s.layer, s.position) for s in spots]
    assert [row[-1] for row in table.rows[:5]] == [
        "".join(f"word{i}" for i in range(len(TOKENS[s.prompt]))) for s in spots
    ]
    assert [row[0] for row in table.rows] == ["little"] * 5 + ["sham (control)"] * 5


def test_the_factorial_is_drawn_per_entry_with_all_six_comparisons(factorial: Document) -> None:
    found = blocks(factorial, "Embedding, body, unembedding", Plot)
    shares = titled(found, "Share of embedding")
    assert [panel.title for panel in shares.panels] == ["little", "sham (control)"]
    assert [series.name for series in shares.panels[0].series] == ["embedding", "body", "interaction"]
    assert all(len(series.y_interval) == 3 for series in shares.panels[0].series)
    pairs = [c.name for c in multi_pass().comparisons]
    assert [s.name for s in titled(found, "Divergence of every comparison").panels[0].series] == pairs
    runs = titled(blocks(factorial, "What was compared", Table), "Runs")
    assert ("SB", "sft", "base", "base") in runs.rows
    assert "those of BB-SS" in runs.caption


def test_tracked_logits_are_means_at_the_last_position(shown: Document) -> None:
    plot = titled(blocks(shown, "Tracked tokens", Plot), "Logit of “ĠNo”")
    token = next(i for i, label in TRACKED_TOKENS.items() if label == "ĠNo")
    for series, run in zip(plot.panels[0].series, ("base", "sft"), strict=True):
        last = [(prompt, len(tokens) - 1) for prompt, tokens in enumerate(TOKENS)]
        expected = [fmean(logit(p, "identity", run, layer, end, token) for p, end in last) for layer in (0, 1)]
        assert list(series.x) == [0, 1]
        assert list(series.y) == pytest.approx(expected)


def test_tokens_that_are_not_drawn_are_named(store: StudyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_tracked, "TOKENS", 1)
    shown = report_of(store)
    assert len(blocks(shown, "Tracked tokens", Plot)) == 1
    assert blocks(shown, "Tracked tokens", Note)[0].text.startswith("Tracked and not drawn: ĠNo.")


def test_a_large_sweep_draws_eight_arms_and_tables_the_rest(tmp_path: Path) -> None:
    arms = ("little", "sham", *(f"pair{i}" for i in range(10)))
    shown = report_of(finished_store(tmp_path / "study", arms))
    plot = titled(blocks(shown, "Layer by layer", Plot), "Base against fine-tuned")
    drawn = [series.name for series in plot.panels[0].series]
    assert drawn == ["little", "sham (control)", *(f"pair{i}" for i in range(6))]
    (scope,) = blocks(shown, "What was compared", Text)
    assert "Not drawn, to keep the page readable, but in every table: pair6, pair7, pair8, pair9." in scope.text
    assert len(titled(blocks(shown, "Layer by layer", Table), "Every capture").rows) == 12


def test_a_treatment_is_drawn_only_with_all_its_controls(store: StudyStore, tmp_path: Path) -> None:
    arms = ("little", "sham", "other", "third")
    wide = finished_store(tmp_path / "study", arms)
    study = wide.lock.study
    contrasts = tuple(
        Contrast(name=f"{a}-{b}", treatment=a, control=b, primary=a == "little")
        for a, b in (("other", "third"), ("other", "sham"), ("little", "sham"))
    )
    study = study.model_copy(update={"analysis": study.analysis.model_copy(update={"contrasts": contrasts})})
    found = groups(study, captures(wide))
    assert [[e.arm for e in group] for group in found] == [["little", "sham"], ["other", "third", "sham"]]
    assert [e.arm for e in members(found)] == ["little", "sham", "other", "third"]
    assert detailed(found, 3) == found[:1]
    assert detailed(found, 4) == found
    assert detailed(found, 1) == found[:1]


def test_of_several_captures_of_an_arm_the_first_is_drawn_and_all_are_tabled(tmp_path: Path) -> None:
    once = capture_store(tmp_path / "once", ARMS)
    cells = [replace(cell, seed=seed) for cell in once.plan for seed in (0, 1)]
    store = StudyStore.create(tmp_path / "study", once.lock.study, make_plan(cells))
    for cell in store.plan:
        finish_capture(store, cell)
    shown = report_of(store)
    (scope,) = blocks(shown, "What was compared", Text)
    assert "The charts show the first capture of each arm (first seed, first replicate)." in scope.text
    plot = titled(blocks(shown, "Layer by layer", Plot), "Base against fine-tuned")
    assert [series.cells for series in plot.panels[0].series] == [((cells[0].id,),), ((cells[2].id,),)]
    table = titled(blocks(shown, "Layer by layer", Table), "Every capture")
    assert [row[:2] for row in table.rows] == [
        ("little", 0), ("little", 1), ("sham (control)", 0), ("sham (control)", 1),
    ]  # fmt: skip
