from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hostile_report import hostile
from sample_report import sample

from nullarm.report import (
    Axis,
    Document,
    Guide,
    Heatmap,
    HeatmapPanel,
    IntervalPlot,
    IntervalRow,
    Pair,
    PairedPlot,
    Plot,
    PlotPanel,
    Point,
    Series,
    palette,
)
from nullarm.report.charts import Chart
from nullarm.report.citations import Citations
from nullarm.report.figure import draw
from nullarm.report.figure.paired import control_mean, difference
from nullarm.report.figure.parts import Figure, script_json, span
from nullarm.report.figure.plot import log_ticks

NONE = Citations({}, {})
NAN, INF = float("nan"), float("inf")


def charts(document: Document) -> list[Chart]:
    blocks = [block for section in document.sections for block in section.blocks]
    return [block for block in blocks if isinstance(block, Heatmap | Plot | IntervalPlot | PairedPlot)]


def figures(document: Document) -> list[Figure]:
    citations = Citations.of(document.cells)
    return [draw(chart, citations) for chart in charts(document)]


def specs(figure: Figure) -> list[dict[str, Any]]:
    return [json.loads(panel.spec) for panel in figure.panels]


def walk(node: Any) -> list[tuple[str, Any]]:
    """Every (key, leaf) below `node`; items of a list carry the list's key."""
    if isinstance(node, dict):
        return [pair for key, child in node.items() for pair in _keyed(key, child)]
    return []


def _keyed(key: str, child: Any) -> list[tuple[str, Any]]:
    if isinstance(child, dict):
        return walk(child)
    if isinstance(child, list):
        return [pair for item in child for pair in _keyed(key, item)]
    return [(key, child)]


@pytest.mark.parametrize("document", [sample(), hostile()], ids=["sample", "hostile"])
def test_every_colour_has_a_dark_partner(document: Document) -> None:
    partners = palette.dark_partners()
    for figure in figures(document):
        for spec in specs(figure):
            drawn = {v for key, v in walk(spec) if "color" in key and isinstance(v, str)}
            assert drawn
            assert drawn <= set(partners)


@pytest.mark.parametrize("document", [sample(), hostile()], ids=["sample", "hostile"])
def test_no_text_of_a_figure_holds_markup_but_line_breaks(document: Document) -> None:
    for figure in figures(document):
        for spec in specs(figure):
            texts = [v for key, v in walk(spec) if key in ("text", "hovertext", "ticktext") and isinstance(v, str)]
            assert texts
            for text in texts:
                assert "<" not in text.replace("<br>", "")
                assert "%{" not in text


def test_every_point_names_its_cell() -> None:
    document = sample()
    citations = Citations.of(document.cells)
    for figure in figures(document):
        for spec in specs(figure):
            for trace in spec["data"]:
                if trace.get("hoverinfo") == "skip":
                    continue
                texts = [v for key, v in walk({"hovertext": trace["hovertext"]}) if key == "hovertext"]
                assert texts
                for text in texts:
                    named = re.search(r"cells? ([0-9a-f]{8})", text)
                    assert named is not None
                    assert named.group(1) in citations.short.values()


def test_json_cannot_leave_its_script_and_refuses_nan() -> None:
    text = script_json({"a": "</script><!--\u2028&"})
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {"a": "</script><!--\u2028&"}
    with pytest.raises(ValueError, match="not JSON compliant"):
        script_json([NAN])


def heatmap(values: list[list[float | None]], scale: Any = "linear") -> Figure:
    panels = tuple(HeatmapPanel("p", ("a", "b"), ("y",), [row]) for row in values)
    return draw(Heatmap("t", "x", "y", "v", panels, scale), NONE)


def test_panels_share_their_colour_limits() -> None:
    traces = [spec["data"][0] for spec in specs(heatmap([[1, 2], [3, NAN]]))]
    assert [(t["zmin"], t["zmax"]) for t in traces] == [(1, 3), (1, 3)]
    assert traces[1]["z"] == [[3, None]]


def test_a_diverging_scale_is_symmetric() -> None:
    trace = specs(heatmap([[-1, 3]], "diverging"))[0]["data"][0]
    assert (trace["zmin"], trace["zmax"]) == (-3, 3)


def test_a_logarithmic_scale_leaves_out_what_has_no_logarithm() -> None:
    figure = heatmap([[0, 10], [1000, -1]], "log")
    assert [spec["data"][0]["z"] for spec in specs(figure)] == [[[None, 1]], [[3, None]]]
    assert figure.ramp is not None
    assert figure.ramp.ticks == ((0.0, "10"), (100.0, "1,000"))


@pytest.mark.parametrize("scale", ["linear", "log", "diverging"])
@pytest.mark.parametrize("value", [None, 0.0, 5.0])
def test_a_heatmap_of_one_value_or_none_has_limits(scale: str, value: float | None) -> None:
    trace = specs(heatmap([[value, value]], scale))[0]["data"][0]
    assert trace["zmin"] < trace["zmax"]


def test_large_heatmaps_print_no_values_and_thin_their_labels() -> None:
    names = tuple(str(i) for i in range(200))
    panel = HeatmapPanel("p", names, names, [[float(i) for i in range(200)]] * 200)
    spec = specs(draw(Heatmap("t", "x", "y", "v", (panel,)), NONE))[0]
    assert "text" not in spec["data"][0]
    assert len(spec["layout"]["xaxis"]["ticktext"]) == 40


def test_every_label_of_a_wide_heatmap_has_its_width() -> None:
    names = tuple(f"token {i}" for i in range(32))
    panel = HeatmapPanel("p", names, ("0", "1"), [[0.5] * 32] * 2)
    figure = draw(Heatmap("t", "x", "y", "v", (panel,)), NONE)
    assert figure.panels[0].least_px >= 14 * 32
    assert figure.panel_px >= figure.panels[0].least_px


def test_rows_of_a_deep_heatmap_are_lower_but_as_high_as_their_labels() -> None:
    def height(rows: int) -> int:
        panel = HeatmapPanel("p", tuple("abcdefghijklmnopqrst"), tuple(map(str, range(rows))), [[0.5] * 20] * rows)
        return draw(Heatmap("t", "x", "y", "v", (panel,)), NONE).panels[0].height_px

    assert height(10) - height(5) == 5 * 24
    assert height(40) - height(30) == 10 * 14


def test_equal_labels_stay_apart() -> None:
    panel = HeatmapPanel("p", ("the", "the"), ("y",), [[1.0, 2.0]])
    spec = specs(draw(Heatmap("t", "x", "y", "v", (panel,)), NONE))[0]
    assert spec["layout"]["xaxis"]["tickvals"] == [0, 1]


def test_log_ticks() -> None:
    assert log_ticks([1, 2, 16]) == [1, 2, 16]
    assert log_ticks([3, 30]) == [1, 2, 5, 10, 20, 50, 100, 200, 500]
    assert log_ticks([0.003, 7]) == [0.001, 0.01, 0.1, 1, 10]
    assert len(log_ticks([1e-30, 3])) <= 9
    assert log_ticks([]) == [1, 2, 5]


def plot(*series: Series, log: bool = False, panels: int = 1) -> Figure:
    return draw(Plot("t", Axis("x"), Axis("y", log=log), (PlotPanel("p", series),) * panels), NONE)


def test_a_range_holds_error_bars_and_all_panels() -> None:
    figure = plot(Series(name="s", x=[0, 1], y=[1, 2], y_interval=[(0, 2), None]), panels=2)
    for spec in specs(figure):
        low, high = spec["layout"]["yaxis"]["range"]
        assert low < 0
        assert high > 2
        assert spec["data"][0]["error_y"]["arrayminus"] == [1, 0]


def test_a_panel_with_an_axis_of_its_own_leaves_the_others_alone() -> None:
    small, large = (Series(name="s", x=[0, 1], y=[0, top]) for top in (1.0, 500.0))
    panels = (PlotPanel("own", (large,), Axis("metres")), PlotPanel("a", (small,)), PlotPanel("b", (small,)))
    own, *others = specs(draw(Plot("t", Axis("x"), Axis("nats"), panels, (Guide("y", 2.0, "cap"),)), NONE))
    assert own["layout"]["yaxis"]["title"]["text"] == "metres"
    assert own["layout"]["yaxis"]["range"][1] > 500
    assert "metres: 500" in own["data"][0]["hovertext"][1]
    assert "shapes" not in own["layout"]
    for other in others:
        assert other["layout"]["yaxis"]["title"]["text"] == "nats"
        assert 2 < other["layout"]["yaxis"]["range"][1] < 3
        assert len(other["layout"]["shapes"]) == 1


def test_a_guide_without_a_label_is_a_line_alone() -> None:
    panels = (PlotPanel("", (Series(name="s", x=[0, 1], y=[0, 1]),)),)
    guides = (Guide("y", 0.0), Guide("y", 1.0, "cap"))
    (spec,) = specs(draw(Plot("t", Axis("x"), Axis("y"), panels, guides), NONE))
    assert [shape["y0"] for shape in spec["layout"]["shapes"]] == [0, 1]
    assert [note["text"] for note in spec["layout"]["annotations"]] == ["cap"]


@pytest.mark.parametrize(("last", "step"), [(0, 1), (9, 1), (10, 2), (18, 2), (33, 5), (80, 10), (95, 20), (900, 100)])
def test_whole_numbers_have_whole_ticks(last: int, step: int) -> None:
    series = Series(name="s", x=[0, last], y=[0, 1])
    figure = draw(Plot("t", Axis("layer", whole=True), Axis("y"), (PlotPanel("", (series,)),)), NONE)
    axis = specs(figure)[0]["layout"]["xaxis"]
    assert (axis["tick0"], axis["dtick"]) == (0, step)


def test_a_band_is_one_polygon_per_unbroken_run() -> None:
    series = Series(
        name="s", x=[0, 1, 2, 3], y=[1, 2, 3, 4], y_interval=[(0, 2), (1, 3), None, (3, NAN)], interval_style="band"
    )
    band, line = specs(plot(series))[0]["data"]
    assert (band["x"], band["y"]) == ([0, 1, 1, 0], [2, 3, 1, 0])
    assert band["meta"] == line["meta"]
    assert band["fillcolor"] == line["line"]["color"]
    assert "error_y" not in line


def test_a_band_after_a_gap_begins_anew() -> None:
    ends = [(0.0, 2.0), None, (1.0, 3.0)]
    series = Series(name="s", x=[0, 1, 2], y=[1, 2, 3], y_interval=ends, interval_style="band")
    band = specs(plot(series))[0]["data"][0]
    assert (band["x"], band["y"]) == ([0, 0, None, 2, 2], [2, 0, None, 3, 1])


def test_a_logarithmic_axis_survives_zeros() -> None:
    spec = specs(plot(Series(name="s", x=[0, 1], y=[0, 100]), log=True))[0]
    assert spec["layout"]["yaxis"]["range"][0] < 2 < spec["layout"]["yaxis"]["range"][1]


def test_series_of_one_name_share_look_and_legend() -> None:
    a, b = (Series(name=name, x=[0], y=[1]) for name in "ab")
    figure = draw(Plot("t", Axis("x"), Axis("y"), (PlotPanel("1", (a, b)), PlotPanel("2", (b,)))), NONE)
    assert [entry.name for entry in figure.legend] == ["a", "b"]
    first, second = specs(figure)
    assert first["data"][1]["line"]["color"] == second["data"][0]["line"]["color"]
    assert second["data"][0]["meta"]["series"] == 1


def test_an_infinite_end_reaches_the_edge_of_the_forest() -> None:
    row = IntervalRow(label="r", estimate=1.0, interval=(0.5, INF))
    spec = specs(draw(IntervalPlot("t", (row,), "x", 0.1), NONE))[0]
    assert spec["data"][0]["x"] == [0.5, spec["layout"]["xaxis"]["range"][1]]


def test_the_band_of_the_margin_is_drawn() -> None:
    row = IntervalRow(label="r", estimate=1.0, interval=None)
    shapes = specs(draw(IntervalPlot("t", (row,), "x", 0.1), NONE))[0]["layout"]["shapes"]
    assert [(s["x0"], s["x1"]) for s in shapes if s["type"] == "rect"] == [(-0.1, 0.1)]


def test_a_forest_without_margin_or_estimates() -> None:
    row = IntervalRow(label="r", estimate=None, interval=None)
    spec = specs(draw(IntervalPlot("t", (row, row), "x"), NONE))[0]
    assert spec["data"] == []
    assert [s["type"] for s in spec["layout"]["shapes"]] == ["line", "line"]  # zero, and between the rows


def test_a_pair_with_missing_values() -> None:
    pair = Pair("s", Point(0.7), (Point(0.5), Point(None), Point(NAN)))
    assert control_mean(pair) == 0.5
    assert difference(pair) == pytest.approx(0.2)
    assert difference(Pair("s", Point(None), (Point(0.5),))) is None
    assert control_mean(Pair("s", Point(0.7), ())) is None
    assert draw(PairedPlot("t", "a", "b", (pair,), "seed", Axis("y")), NONE).panels


def test_equal_controls_stand_side_by_side() -> None:
    pair = Pair("s", Point(0.7), (Point(0.5), Point(0.5)))
    spec = specs(draw(PairedPlot("t", "a", "b", (pair,), "seed", Axis("y")), NONE))[0]
    controls = next(t for t in spec["data"] if t["mode"] == "markers")
    assert controls["x"][0] != controls["x"][1]


def test_span_of_nothing_and_of_one() -> None:
    assert span([None, NAN]) == (-1, 1)
    assert span([0.0]) == (-1, 1)
    low, high = span([5.0])
    assert low < 5 < high
