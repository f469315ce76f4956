"""The report of a communication study, rendered."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from html import unescape
from pathlib import Path

import pyarrow as pa
import pytest

from nullarm.analysis import analyse
from nullarm.protocols.kv_communication.parameters import Channel
from nullarm.protocols.kv_communication.report.document import document
from nullarm.protocols.kv_communication.tables import STATISTICS
from nullarm.report import Document, Heatmap, IntervalPlot, Note, Plot, Table, Text, write_html, write_markdown
from nullarm.store.study_store import StudyStore
from support.communications import ARMS, FakeArm, communication_store, finish, finish_all, modulo, statistics
from support.rehearsals import writer_of

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
    assert (series["frontier"].x, series["frontier"].y) == ([1900.0, 4000.0], [0.8, 0.9])
    assert "int8_p0p5_back, 40 items\n1,900 bytes, 95 an input token\non the frontier in" in series["int8"].hover[1]
    assert series["int8"].y_interval[0] is not None


def test_the_grid_has_differences_intervals_and_p(made: Document) -> None:
    title = "words: accuracy minus that of c2c"
    row = line(made, title, "int4")
    assert row["difference"] == pytest.approx(-0.15)
    assert row["p"] == pytest.approx(2 / 2**6)
    assert (row["n"], row["verdict"]) == (40, "HARMFUL")
    assert list(row) == ["arm", "difference", "low", "high", "p", "TOST p", "n", "verdict"]
    forest = block(made, "words: accuracy minus that of receiver, intervals", IntervalPlot)
    assert isinstance(forest, IntervalPlot)
    assert forest.margin == 0.2
    assert {r.label: r.verdict for r in forest.rows}["c2c"] == "CONFIRMED"


def test_every_verdict_has_its_reason_and_what_would_settle_it(made: Document) -> None:
    title = "words: accuracy minus that of c2c, why"
    assert str(line(made, title, "int4")["reason"]).startswith("Treated is below its control: -0.15")
    assert line(made, title, "int4")["n that would settle it"] is None
    assert str(line(made, title, "int8")["reason"]).startswith("Treated and control scores are identical on all 40")
    open_one = line(made, title, "sharer")
    assert str(open_one["reason"]).startswith("Neither an effect nor its absence is shown")
    assert isinstance(open_one["n that would settle it"], int)
    assert isinstance(open_one["detectable"], float)


def test_no_two_headings_are_alike(made: Document) -> None:
    titles = [b.title for s in made.sections for b in s.blocks if not isinstance(b, Text | Note)]
    assert [title for title, count in Counter(titles).items() if count > 1] == []


def test_clustered_items_are_said_to_be(tmp_path: Path) -> None:
    store = communication_store(tmp_path / "study")
    finish_all(store, cluster=modulo(5))
    made = document_of(store)
    caption = table(made, "words: accuracy minus that of c2c").caption
    assert "n counts clusters" in caption
    assert "“of accuracies” is the difference of the two accuracies above" in caption
    row = line(made, "words: accuracy minus that of c2c", "int4")
    accuracy = {arm: line(made, "Accuracy and bytes: words", arm)["accuracy"] for arm in ("int4", "c2c")}
    assert row["of accuracies"] == accuracy["int4"] - accuracy["c2c"]  # type: ignore[operator]


@pytest.mark.parametrize("smoke", [True, False])
def test_no_verdict_without_the_whole_study(tmp_path: Path, smoke: bool) -> None:
    arms = {**ARMS, "text": replace(ARMS["text"], message_bytes=2000)}
    store = communication_store(tmp_path / "study", arms, smoke=smoke)
    finish_all(store, arms, but=[] if smoke else ["zeroed"])
    made = document_of(store)
    for reference in ("c2c", "receiver"):
        shown = table(made, f"words: accuracy minus that of {reference}")
        assert {row[shown.columns.index("verdict")] for row in shown.rows} == {"INVALID"}
        assert {row[shown.columns.index("low")] for row in shown.rows} == {None}
    assert line(made, "words: accuracy minus that of c2c", "int4")["difference"] == pytest.approx(-0.1)
    equal = line(made, "At equal bytes: words", "text")
    assert (equal["best cache no larger"], equal["low"], equal["p"]) == ("int8_p0p5_back", None, None)
    (note,) = (b.text for s in made.sections for b in s.blocks if isinstance(b, Note) and "No verdict" in b.text)
    reason = "this is a smoke run" if smoke else "1 of 9 cells are not finished, the first: seed 0 · zeroed · words"
    assert note.startswith(f"No verdict on any arm: {reason}")


def test_references_that_differ_are_named(tmp_path: Path) -> None:
    arms = {
        **{name: ARMS[name] for name in ("receiver", "c2c", "int4")},
        "other": FakeArm(Channel(fusers=("other",)), lambda i: i % 2 == 0, 8000),
        "other_int4": FakeArm(Channel(fusers=("other",), codec="int4"), lambda i: i % 2 == 0, 2000),
    }
    store = communication_store(tmp_path / "study", arms)
    finish_all(store, arms)
    title = "words: accuracy minus that of the unquantised cache, why"
    assert line(document_of(store), title, "other_int4")["against"] == "other"


def test_time_is_split_into_its_parts(made: Document) -> None:
    text = line(made, "Mean milliseconds an item: words", "text")
    transfer = text["transfer"]
    assert isinstance(transfer, float)
    assert transfer == pytest.approx(0.5 + 1000 * 8 * 250 / 1e9)
    assert (text["sharer"], text["encode"], text["total"]) == (2000.0, 125.0, pytest.approx(2625 + transfer))
    assert line(made, "Mean milliseconds an item: words", "receiver")["transfer"] == 0.0


def test_text_at_equal_bytes_and_in_time(made: Document) -> None:
    equal = line(made, "At equal bytes: words", "text")
    assert equal["best cache no larger"] == "none that small: the smallest cache is 1,900 bytes"
    assert equal["difference"] is None
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


def test_bytes_are_drawn_against_the_error(made: Document) -> None:
    plot = block(made, "default: bytes against error of each codec", Plot)
    assert isinstance(plot, Plot)
    assert plot.x.log
    assert plot.y.log
    (panel,) = plot.panels
    # Two layers of two halves at 8 bytes a token; the second layer has twice the error of the first.
    assert {s.name: list(s.x) for s in panel.series} == {"int8": [32.0], "int4": [32.0]}
    assert [s.y[0] for s in panel.series] == pytest.approx([0.015, 0.1875])


def test_a_codec_without_error_is_in_the_table_alone(tmp_path: Path) -> None:
    rows = [{**row, "relative_error": 0.0} if row["codec"] == "int8" else row for row in statistics()]
    store = communication_store(tmp_path / "study", calibrate=True)
    writer = writer_of(store, next(iter(store.plan)))
    writer.table_artefact(STATISTICS, pa.Table.from_pylist(rows))
    writer.commit({})
    made = document_of(store)
    plot = block(made, "default: bytes against error of each codec", Plot)
    assert isinstance(plot, Plot)
    assert [s.name for s in plot.panels[0].series] == ["int4"]
    assert line(made, "default: quantisation errors, mean over streams", "int8")["relative error"] == 0.0


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
