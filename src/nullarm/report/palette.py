"""Every colour of the report, for a light page and for a dark one.

Figures are built in the light colours; the page swaps them for their dark partners. Series are told apart by
lightness as well as hue (after Okabe and Ito, 2008), so no meaning rests on red against green.
"""

from __future__ import annotations

from collections.abc import Mapping

Pair = tuple[str, str]

PAGE: Mapping[str, Pair] = {
    "paper": ("#ffffff", "#14171c"),
    "sheet": ("#f5f7f9", "#1c2027"),
    "ink": ("#16191d", "#e8eaed"),
    "soft": ("#535c68", "#a6b0bc"),
    "line": ("#d6dbe1", "#343b45"),
    "grid": ("#e7eaee", "#272d35"),
    "link": ("#0a58a8", "#7ab8ff"),
    "band": ("#dde3ea", "#2e3642"),
}
TONES: Mapping[str, Pair] = {
    "found": ("#0b5cad", "#79b8ff"),
    "null": ("#00695a", "#56d3b8"),
    "harm": ("#a83a00", "#ff9a5c"),
    "open": ("#775300", "#e8c250"),
    "void": ("#8a1c5a", "#ff92c8"),
}
SERIES: tuple[Pair, ...] = (
    ("#0b60b3", "#6fb4ff"),
    ("#c4500a", "#ff9b54"),
    ("#00806b", "#4fd4b6"),
    ("#85379f", "#d29cf2"),
    ("#8c6a00", "#e4c244"),
    ("#c02069", "#ff88b7"),
    ("#2f95cc", "#a5dcf8"),
    ("#5b6571", "#9ba6b2"),
)
SEQUENTIAL: tuple[Pair, ...] = (
    ("#e9f6f0", "#1d2230"),
    ("#b5e2cf", "#2b3a63"),
    ("#72cbb4", "#325d95"),
    ("#41abaf", "#3a86a9"),
    ("#3886a8", "#44abae"),
    ("#3b5e9a", "#73cbb5"),
    ("#3c3768", "#b6e3d0"),
    ("#211126", "#eaf7f1"),
)
ORDERED: tuple[Pair, ...] = (
    ("#2fa39f", "#3b82b0"),
    ("#2f93a3", "#3f93ae"),
    ("#3281a6", "#45a3ad"),
    ("#376ea3", "#52b4ad"),
    ("#3c5b99", "#6bc5b2"),
    ("#3f4882", "#8fd5bd"),
    ("#3b3564", "#b9e5d2"),
    ("#2a1f3f", "#e8f7f0"),
)
"""For lines that have an order; unlike `SEQUENTIAL`, each stands out from the page."""
DIVERGING: tuple[Pair, ...] = (
    ("#7a2e00", "#ffbd80"),
    ("#d97a35", "#b9651f"),
    ("#f3f4f5", "#23282f"),
    ("#4f93c9", "#3172ab"),
    ("#08396f", "#8fc8ff"),
)

PAPER, INK, SOFT, LINE, GRID, BAND = (PAGE[name][0] for name in ("paper", "ink", "soft", "line", "grid", "band"))


def tone(name: str) -> str:
    """The light colour of a verdict's tone."""
    return TONES[name][0]


def colorscale(stops: tuple[Pair, ...]) -> list[tuple[float, str]]:
    """The light colours of `stops` as Plotly takes a colour scale."""
    return [(index / (len(stops) - 1), light) for index, (light, _) in enumerate(stops)]


def dark_partners() -> dict[str, str]:
    """Light colour → dark colour, for everything a figure may be drawn in."""
    pairs = (*PAGE.values(), *TONES.values(), *SERIES, *SEQUENTIAL, *ORDERED, *DIVERGING)
    return dict(pairs)


def css_variables(theme: int) -> str:
    """Custom properties of the page, for theme 0 (light) or 1 (dark)."""
    named = [(name, pair) for group in (PAGE, TONES) for name, pair in group.items()]
    ramps = (("series", SERIES), ("sequential", SEQUENTIAL), ("ordered", ORDERED), ("diverging", DIVERGING))
    for prefix, pairs in ramps:
        named += [(f"{prefix}-{index}", pair) for index, pair in enumerate(pairs)]
    return "".join(f"--{name}:{pair[theme]};" for name, pair in named)
