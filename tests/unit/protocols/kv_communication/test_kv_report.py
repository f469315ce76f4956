"""The report of a communication study, rendered."""

from __future__ import annotations

from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest

from nullarm.analysis import analyse
from nullarm.protocols.kv_communication.report.document import document
from nullarm.report import Document, Heatmap, IntervalPlot, Plot, Table, write_html, write_markdown
from nullarm.store.study_store import StudyStore
from support.communications import ARMS, communication_store, finish, finish_all

FAULTY = {**ARMS, "int4": replace(ARMS["int4"], error=lambda i: "no letter <b>found</b>" if i in (3, 13) else None)}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> StudyStore:
    store = communication_store(tmp_path_factory.mktemp("report") / "study", FAULTY, calibrate=True)
    finish_all(store, FAULTY)
    return store


def document_of(store: StudyStore) -> Document:
    return document(store, analyse(store, ("evaluate",)))


@pytest.fixture(scope="module")
def made(store: StudyStore) -> Document:
    return document_of(store)


def block(made: Document, title: str, kind: type) -> object:
    (found,) = (b for s in made.sections for b in s.blocks if isinstance(b, kind) and getattr(b, "title", "") == title)
    return found


def table(made: Document, title: str) -> Table:
    found = block(made, title, Table)
    assert isinstance(found, Table)
    return found


def line(made: Document, title: str, arm: str) -> dict[str, object]:
    found = table(made, title)
    return next(dict(zip(found.columns, row, strict=True)) for row in found.rows if row[0] == arm)


def test_sections(made: Document) -> None:
    assert [section.title for section in made.sections] == [
        "Effects against the margin", "What was compared", "Bytes against accuracy",
        "Every arm against its references", "Where the time goes", "Caches against text",
        "What quantisation does to the caches", "Errors", "Provenance",
    ]  # fmt: skip


def test_arms_and_results(made: Document) -> None:
    assert line(made, "Arms", "int8_p0p5_back") == {
        "arm": "int8_p0p5_back", "sends": "cache", "codec": "int8", "share": 0.5, "order": "back", "fusers": "default",
        "remarks": None,
    }  # fmt: skip
    assert line(made, "Arms", "text")["sends"] == "text, at most 300 bytes"
    assert line(made, "Arms", "zeroed")["sends"] == "zeros"
    int4 = line(made, "Accuracy and bytes: words", "int4")
    assert (int4["items"], int4["accuracy"], int4["bytes an item"], int4["errors"]) == (40, 30 / 40, 2000.0, 2)


def test_the_curve_is_logarithmic_and_marks_the_frontier(made: Document) -> None:
    plot = block(made, "words: bytes against accuracy", Plot)
    assert isinstance(plot, Plot)
    (panel,) = plot.panels
    series = {s.name: s for s in panel.series}
    assert plot.x.log
    assert [guide.value for guide in plot.guides] == [0.25]
    assert list(series) == ["frontier", "text", "bf16", "controls", "int8", "int4"]
    assert (series["frontier"].x, series["frontier"].y) == ([250.0, 1900.0, 4000.0], [0.5, 0.8, 0.9])
    assert "int8_p0p5_back, 40 items\n1,900 bytes, 95 an input token\non the frontier in" in series["int8"].hover[1]
    assert series["int8"].y_interval[0] is not None


def test_the_grid_has_differences_intervals_and_adjusted_p(made: Document) -> None:
    row = line(made, "words: accuracy minus that of c2c", "int4")
    assert row["difference"] == pytest.approx(-0.15)
    assert row["p"] == pytest.approx(2 / 2**6)
    assert "McNemar p" not in row
    holm = row["Holm p"]
    assert isinstance(holm, float)
    assert holm > 2 / 2**6
    assert row["verdict"] == "HARMFUL"
    forest = block(made, "words: accuracy minus that of receiver", IntervalPlot)
    assert isinstance(forest, IntervalPlot)
    assert forest.margin == 0.2
    assert {r.label: r.verdict for r in forest.rows}["c2c"] == "CONFIRMED"


def test_clustered_items_are_said_to_be(tmp_path: Path) -> None:
    store = communication_store(tmp_path / "study")
    finish_all(store, clusters=5)
    made = document_of(store)
    caption = table(made, "words: accuracy minus that of c2c").caption
    assert caption.startswith("Paired by clusters; 90\u00a0% bootstrap intervals. Items come in clusters")
    row = line(made, "words: accuracy minus that of c2c", "int4")
    assert row["McNemar p"] == pytest.approx(0.125)
    assert row["p"] != row["McNemar p"]


def test_time_is_split_into_its_parts(made: Document) -> None:
    text = line(made, "Mean milliseconds an item: words", "text")
    transfer = text["transfer"]
    assert isinstance(transfer, float)
    assert transfer == pytest.approx(0.5 + 1000 * 8 * 250 / 1e9)
    assert (text["sharer"], text["encode"], text["total"]) == (2000.0, 125.0, pytest.approx(2625 + transfer))
    assert line(made, "Mean milliseconds an item: words", "receiver")["transfer"] == 0.0


def test_text_at_equal_bytes_and_in_time(made: Document) -> None:
    equal = line(made, "At equal bytes: words", "text")
    assert (equal["nearest cache"], equal["cache bytes"]) == ("int8_p0p5_back", 1900.0)
    crossing = table(made, "Crossing: words")
    assert crossing.columns == ("cache", "text", "crossing, Gbit/s", "the faster one")
    assert crossing.rows[0][3] == "text below, int8_p0p5_back above"


def test_layers_and_halves_are_mapped(made: Document) -> None:
    errors = block(made, "default: relative error by layer and half", Heatmap)
    assert isinstance(errors, Heatmap)
    assert [panel.title for panel in errors.panels] == ["int8", "int4"]
    assert (errors.panels[0].y, errors.panels[0].x) == (("1", "0"), ("key", "value"))
    assert errors.panels[1].values == [[0.25, 0.25], [0.125, 0.125]]
    damage = block(made, "default: what grouped in one stream alone costs the answer", Heatmap)
    assert isinstance(damage, Heatmap)
    assert [panel.title for panel in damage.panels] == ["2 bits", "4 bits"]
    assert line(made, "default: quantisation errors, mean over streams", "int4")["bytes a token, all streams"] == 32.0


def test_errors_are_counted_and_listed(made: Document) -> None:
    assert table(made, "Errors, counted").rows == (("int4", "words", "no letter <b>found</b>", 2),)
    assert [row[3] for row in table(made, "Errors, item by item").rows] == ["words:003", "words:013"]


def test_the_page_is_whole(made: Document, tmp_path: Path) -> None:
    write_html(made, tmp_path / "report.html")
    write_markdown(made, tmp_path / "report.md")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for section in made.sections:
        assert section.title in unescape(page)
    assert "no letter &lt;b&gt;found&lt;/b&gt;" in page
    assert "<b>found</b>" not in page
    assert "int8_p0p5_back" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_what_is_not_finished_or_not_valid_is_named(tmp_path: Path) -> None:
    store = communication_store(tmp_path / "study")
    finish_all(store, but=["int4", "text"])
    cell = next(c for c in store.plan if c.arm == "int4")
    finish(store, cell, ARMS["int4"], outcome="invalid", reason="9 of 40 items ended in an error")
    write_html(made := document_of(store), tmp_path / "report.html")
    page = unescape((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "seed 0 · text · words has no finished evaluation: pending." in page
    assert "seed 0 · int4 · words is invalid and enters no comparison: 9 of 40 items ended in an error" in page
    assert all(row[0] != "int4" for row in table(made, "Accuracy and bytes: words").rows)
    assert "Caches against text" not in [section.title for section in made.sections]


def test_an_empty_study_has_a_report(tmp_path: Path) -> None:
    store = communication_store(tmp_path / "study")
    made = document_of(store)
    assert [section.title for section in made.sections][1] == "What was compared"
    write_html(made, tmp_path / "report.html")
