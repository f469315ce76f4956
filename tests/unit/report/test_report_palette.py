from __future__ import annotations

import pytest

from nullarm.report import palette


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    """Contrast ratio of WCAG 2.2."""
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


THEMES = [pytest.param(0, id="light"), pytest.param(1, id="dark")]


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("name", ["ink", "soft", "link", *palette.TONES])
def test_text_can_be_read(theme: int, name: str) -> None:
    colour = {**palette.PAGE, **palette.TONES}[name][theme]
    assert contrast(colour, palette.PAGE["paper"][theme]) >= 4.5
    assert contrast(colour, palette.PAGE["sheet"][theme]) >= 4.5


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("pair", [*palette.SERIES, *palette.ORDERED])
def test_lines_stand_out(theme: int, pair: tuple[str, str]) -> None:
    assert contrast(pair[theme], palette.PAGE["paper"][theme]) >= 3


def test_each_light_colour_has_one_dark_partner() -> None:
    groups = (palette.PAGE.values(), palette.TONES.values(), palette.SERIES, palette.SEQUENTIAL, palette.ORDERED)
    light = [pair[0] for pairs in (*groups, palette.DIVERGING) for pair in pairs]
    assert len(set(light)) == len(light) == len(palette.dark_partners())


@pytest.mark.parametrize("theme", THEMES)
def test_css_names_every_tone_and_series(theme: int) -> None:
    css = palette.css_variables(theme)
    assert f"--found:{palette.TONES['found'][theme]};" in css
    assert f"--series-7:{palette.SERIES[7][theme]};" in css
    assert f"--sequential-0:{palette.SEQUENTIAL[0][theme]};" in css
