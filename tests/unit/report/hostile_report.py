"""A document with hostile text in every field that takes text."""

from __future__ import annotations

from nullarm.report import (
    Axis,
    CellRef,
    Code,
    Document,
    Guide,
    Heatmap,
    HeatmapPanel,
    IntervalPlot,
    IntervalRow,
    KeyValues,
    Note,
    Pair,
    PairedPlot,
    Plot,
    PlotPanel,
    Point,
    Section,
    Series,
    Table,
    Text,
    VerdictCard,
)

HOSTILE = (
    "<script>window.pwned=1</script>",
    "</script><script>window.pwned=1</script>",
    "<img src=x onerror=window.pwned=1>",
    "\"><svg onload=window.pwned=1>",
    "' onmouseover='window.pwned=1",
    "<a href=\"javascript:window.pwned=1\">link</a>",
    "[link](javascript:window.pwned=1) ![image](https://example.invalid/x.png)",
    "https://example.invalid www.example.invalid a@example.invalid",
    "<!--", "-->", "]]>", "</style>", "</textarea>", "</title>", "</noscript>",
    "<b>bold</b><br><sub>x</sub><span style='font-size:99px'>big</span>",
    "&lt;b&gt; &amp; &#60;i&#62;",
    "%{x} %{customdata} $\\alpha$ {{ 7 * 7 }} {% raw %} ${7*7} #{7*7}",
    "\x1b[2J\x1b]0;title\x07\x9b31m",
    "\u202eright-to-left override\u2066 isolate",
    "עברית العربية",
    "👩🏽‍🔬 𝕏 🏴\U000e0067",
    "\u2028\u2029\ufeff\u200b\u0000\ud800\uffff",
    "=HYPERLINK(\"https://example.invalid\")",
    "`code` ```fence``` | pipe | **bold** __init__ ~~gone~~ \\ # heading",
    "# heading", "- item", "1. item", "---", "> quote", "javascript:window.pwned=1",
)  # fmt: skip
ALL = " ".join(HOSTILE)
"""Every hostile text in one."""


def hostile() -> Document:
    """Each hostile text by itself where a block repeats, all of them together everywhere else."""
    ids = tuple(f"{index}{text}" for index, text in enumerate(HOSTILE))
    return Document(
        title=ALL,
        question=ALL,
        subtitle=ALL,
        verdicts=(_card(ALL, ids, primary=True), *(_card(text, ids[:2]) for text in HOSTILE)),
        sections=(
            Section(ALL, (Text(f"{ALL}\n\n{ALL}"), *(Text(text) for text in HOSTILE), Note(ALL, "warning"), Note(ALL))),
            Section("blocks", (Code(ALL, ALL), *(Code(text) for text in HOSTILE), _facts(), _table(ids))),
            Section("charts", (_heatmap(ids), _plot(ids), _intervals(ids), _paired(ids))),
        ),
        cells=tuple(CellRef(i, text, text, text) for i, text in zip(ids, HOSTILE, strict=True)),
    )


def _card(text: str, ids: tuple[str, ...], *, primary: bool = False) -> VerdictCard:
    return VerdictCard(
        name=text,
        verdict="CONFIRMED" if primary else text,
        reason=text,
        estimate=0.1,
        interval=(float("-inf"), 0.2),
        unit=text,
        test=text,
        n=3,
        n_unit=text,
        p_value=0.5,
        margin=0.01,
        cells=ids,
        primary=primary,
        exploratory=True,
    )


def _facts() -> KeyValues:
    return KeyValues(ALL, tuple((text, text) for text in HOSTILE))


def _table(ids: tuple[str, ...]) -> Table:
    return Table(ALL, (ALL, "b"), tuple((text, float("nan")) for text in HOSTILE), tuple((i,) for i in ids), ALL)


def _heatmap(ids: tuple[str, ...]) -> Heatmap:
    row = [float(index) for index in range(len(HOSTILE))]
    panels = tuple(
        HeatmapPanel(text, HOSTILE, (text, ALL), [row, [float("nan")] * len(row)], [HOSTILE, HOSTILE], ids)
        for text in HOSTILE[:3]
    )
    return Heatmap(ALL, ALL, ALL, ALL, panels, caption=ALL)


def _plot(ids: tuple[str, ...]) -> Plot:
    series = tuple(
        Series(name=text, x=[1.0, 2.0], y=[float(i), None], hover=[text, text], cells=((ids[i],),), style="line+points")
        for i, text in enumerate(HOSTILE)
    )
    return Plot(ALL, Axis(ALL), Axis(ALL), (PlotPanel(ALL, series),), (Guide("y", 2.0, ALL),), caption=ALL)


def _intervals(ids: tuple[str, ...]) -> IntervalPlot:
    rows = tuple(
        IntervalRow(label=text, estimate=float(i), interval=(i - 1.0, float("inf")), verdict=text, cells=(ids[i],))
        for i, text in enumerate(HOSTILE)
    )
    return IntervalPlot(ALL, rows, ALL, 0.5, caption=ALL)


def _paired(ids: tuple[str, ...]) -> PairedPlot:
    pairs = tuple(
        Pair(text, Point(1.0, text, (ids[i],)), (Point(0.5, text, (ids[i],)), Point(None, text)))
        for i, text in enumerate(HOSTILE)
    )
    return PairedPlot(ALL, ALL, ALL, pairs, ALL, Axis(ALL), ALL)
