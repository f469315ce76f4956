from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from causal_trials import (
    PROMPTS,
    cell_of,
    changed,
    finished_capture,
    finished_cell,
    load,
    opened,
    other_block,
    pair,
    run,
)

from nullarm.protocols.residual.capture.pair_models import PairModels
from nullarm.protocols.residual.causal.report import PROMPTS_SHOWN, causal_sections
from nullarm.protocols.residual.causal.tables import LEAST_GAP
from nullarm.report import CellRef, Document, Heatmap, Note, Plot, Section, Series, Table, write_html, write_markdown
from nullarm.report.numbers import show
from nullarm.store.study_store import StudyStore
from nullarm.study.plan import Cell, make_plan
from support.captures import TOKENS, capture_cell, capture_store, finish_capture

STAGES = ("patching", "layer_swap", "steering")
CELLS = {stage: cell_of(stage) for stage in STAGES}


def store_of(root: Path, cells: dict[str, Cell] = CELLS) -> StudyStore:
    study = capture_store(root / "other").lock.study
    return StudyStore.create(root / "study", study, make_plan(cells.values()))


def reported(root: Path, models: PairModels) -> tuple[StudyStore, dict[str, Section]]:
    """The store of a study whose interventions have all run, and the sections by title."""
    store = store_of(root)
    capture = finished_capture(root / "captures", {"base-sft": torch.randn(3, 32)})
    for cell in CELLS.values():
        run(store.paths.root, cell, models, {"capture": capture})
    return store, {section.title: section for section in causal_sections(store)}


@pytest.fixture(scope="module")
def sections(tmp_path_factory: pytest.TempPathFactory) -> tuple[StudyStore, dict[str, Section]]:
    """Of models that differ in block 1 alone."""
    base = load()
    return reported(tmp_path_factory.mktemp("planted"), pair(base, changed(base, other_block(1))))


Sections = tuple[StudyStore, dict[str, Section]]


def plot(section: Section, title: str) -> Plot:
    return next(block for block in section.blocks if isinstance(block, Plot) and block.title.startswith(title))


def series(chart: Plot, panel: int, name: str) -> Series:
    return next(line for line in chart.panels[panel].series if line.name == name)


def test_there_is_a_section_for_each_kind_that_has_run(sections: Sections, tmp_path: Path) -> None:
    assert list(sections[1]) == ["Activation patching", "Layer-range swaps", "Steering by the mean difference"]
    store = store_of(tmp_path)
    assert causal_sections(store) == []
    run(store.paths.root, CELLS["layer_swap"], pair(load(), load(seed=2)))
    assert [section.title for section in causal_sections(store)] == ["Layer-range swaps"]


def test_a_cell_that_is_not_ok_is_not_shown(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    with opened(store.paths.root, CELLS["patching"]) as context:
        context.writer.commit({}, outcome="invalid", reason="planned")
    assert causal_sections(store) == []


def test_patching_is_drawn_by_layer_and_as_maps(sections: Sections) -> None:
    section = sections[1]["Activation patching"]
    chart = plot(section, "Effect of one residual by layer, little")
    assert [panel.title for panel in chart.panels] == ["last position", "earlier positions, averaged"]
    line = series(chart, 0, "base into sft")
    assert line.x == [-1, 0, 1]
    assert list(line.y) == pytest.approx([0.0, 0.0, 1.0], abs=1e-4)
    assert line.cells == ((CELLS["patching"].id,),)
    assert all(
        ends is not None and ends[0] <= y <= ends[1] for ends, y in zip(line.y_interval, line.y, strict=True) if y
    )
    maps = [block for block in section.blocks if isinstance(block, Heatmap)]
    assert len(maps) == PROMPTS_SHOWN
    tokens = load().tokenizer.tokenize(PROMPTS[0])
    panel = maps[0].panels[1]
    assert panel.title == "sft into base"
    assert panel.x == tuple(f"{i} {token}" for i, token in enumerate(tokens))
    assert panel.y == ("1", "0", "−1")
    assert [row[-1] for row in panel.values] == [1.0, 0.0, 0.0]
    assert maps[0].caption.startswith(f"Prompt 0: “{''.join(tokens)}”. Values are rounded to 4 decimals")
    table = finished_cell(sections[0].paths.root, CELLS["patching"]).table("patching").to_pandas()
    here = table[(table["prompt"] == 0) & (table["direction"] == "sft_into_base") & (table["layer"] == 1)]
    assert panel.hover[0] == [f"outcome {show(float(outcome))}" for outcome in here["outcome"]]


def test_swaps_are_drawn_by_span_with_the_whole_body_as_a_table(sections: Sections) -> None:
    section = sections[1]["Layer-range swaps"]
    effects = plot(section, "Exchanged blocks: effect, little")
    assert [panel.title for panel in effects.panels] == [
        "window of 1 block",
        "up to this block",
        "from this block on",
    ]
    found = [list(series(effects, panel, "sft into base").y) for panel in range(3)]
    for ours, expected in zip(found, ([0, 1], [0, 1], [1, 1]), strict=True):
        assert ours == pytest.approx(expected, abs=1e-4)
    divergence = plot(section, "Exchanged blocks: KL(donor ‖ hybrid)")
    assert series(divergence, 1, "base into sft").y[1] == pytest.approx(0.0, abs=1e-6)
    assert plot(section, "Exchanged blocks: loss of the prompts").y.label == "loss of the prompts, nats a token"
    body = next(block for block in section.blocks if isinstance(block, Table))
    assert [row[0] for row in body.rows] == ["base into sft", "sft into base"]
    assert [row[body.columns.index("effect")] for row in body.rows] == pytest.approx([1.0, 1.0], abs=1e-4)
    assert body.cells == ((CELLS["layer_swap"].id,),) * 2


def test_steering_is_drawn_beside_its_control(sections: Sections) -> None:
    store, by_title = sections
    section = by_title["Steering by the mean difference"]
    chart = plot(section, "KL from the fine-tuned model to the steered base")
    assert [panel.title for panel in chart.panels] == ["strength −1", "strength 1"]
    table = finished_cell(store.paths.root, CELLS["steering"]).table("steering").to_pandas()
    for panel, strength in ((0, -1.0), (1, 1.0)):
        assert [line.name for line in chart.panels[panel].series] == ["mean_difference", "random"]
        for line in chart.panels[panel].series:
            here = table[(table["direction"] == line.name) & (table["strength"] == strength)]
            assert list(line.y) == pytest.approx(here.groupby("layer")["kl_donor"].mean().tolist(), rel=1e-5)
    before = table.groupby("prompt")["kl_before"].first().mean()
    assert [guide.label for guide in chart.guides] == [""]
    assert chart.caption.endswith("Dashed: the base model, not steered.")
    assert chart.guides[0].value == pytest.approx(before, rel=1e-5)
    shifts = next(block for block in section.blocks if isinstance(block, Heatmap))
    assert [panel.title for panel in shifts.panels] == ["mean_difference", "random"]
    assert shifts.panels[0].x == ("−1", "1")
    assert shifts.panels[0].y == ("1", "0", "−1")


def test_the_sections_are_part_of_a_page(sections: Sections, tmp_path: Path) -> None:
    cells = tuple(CellRef(cell.id, cell.label, "ok") for cell in CELLS.values())
    page = Document(title="t", question="q", sections=tuple(sections[1].values()), cells=cells)
    write_html(page, tmp_path / "report.html")
    write_markdown(page, tmp_path / "report.md")
    for name in ("report.html", "report.md"):
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert "Steering by the mean difference" in text
        assert "Exchanged blocks: effect, little" in text


def test_a_model_against_itself_has_a_note_and_no_charts(tmp_path: Path) -> None:
    model = load()
    _, by_title = reported(tmp_path, pair(model, model))
    for section in by_title.values():
        notes = [block.text for block in section.blocks if isinstance(block, Note)]
        nothing = "little: on none of 3 prompts do the two models' outcomes differ by 0.001 or more"
        assert sum(note.startswith(nothing) for note in notes) == 1
        assert not any(isinstance(block, Plot | Heatmap | Table) for block in section.blocks)
        assert any("splits into" in note for note in notes)
    cells = tuple(CellRef(cell.id, cell.label, "ok") for cell in CELLS.values())
    page = Document(title="t", question="q", sections=tuple(by_title.values()), cells=cells)
    write_html(page, tmp_path / "report.html")
    assert "NaN" not in (tmp_path / "report.html").read_text(encoding="utf-8").split("<main")[-1].split("<script")[0]


def test_divergences_are_drawn_of_models_that_differ_by_no_outcome(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LEAST_GAP, "float32", 1e6)
    _, by_title = reported(tmp_path, pair(load(), load(seed=2)))
    drawn = {
        title: [block.title.split(",")[0] for block in section.blocks if isinstance(block, Plot)]
        for title, section in by_title.items()
    }
    assert drawn == {
        "Activation patching": [],
        "Layer-range swaps": ["Exchanged blocks: KL(donor ‖ hybrid)", "Exchanged blocks: loss of the prompts"],
        "Steering by the mean difference": ["KL from the fine-tuned model to the steered base"],
    }


def test_tokens_are_decoded_as_the_capture_of_the_arm_has_them(tmp_path: Path) -> None:
    store = store_of(tmp_path, {"capture": capture_cell("little"), "patching": CELLS["patching"]})
    finish_capture(store, next(cell for cell in store.plan if cell.stage == "capture"))
    run(store.paths.root, CELLS["patching"], pair(load(), load(seed=2)))
    (section,) = causal_sections(store)
    first = next(block for block in section.blocks if isinstance(block, Heatmap))
    tokens = load().tokenizer.tokenize(PROMPTS[0])
    known = {token: f"word{i}" for prompt in TOKENS for i, token in enumerate(prompt)}
    assert first.panels[0].x == tuple(f"{i} {known.get(token, token)}" for i, token in enumerate(tokens))
    assert "2 word1" in first.panels[0].x


def test_one_cell_of_each_arm_is_drawn(tmp_path: Path) -> None:
    base = load()
    cells = {
        name: replace(CELLS["patching"], arm=arm, replicate=replicate)
        for name, arm, replicate in (("a1", "a", 1), ("a2", "a", 2), ("b", "b", None))
    }
    store = store_of(tmp_path, cells)
    for cell in cells.values():
        run(store.paths.root, cell, pair(base, load(seed=2)))
    (section,) = causal_sections(store)
    cited = {panel.cells for block in section.blocks if isinstance(block, Heatmap) for panel in block.panels}
    assert cited == {(cells["a1"].id,), (cells["b"].id,)}
