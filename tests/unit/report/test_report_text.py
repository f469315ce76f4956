from __future__ import annotations

import pytest

from nullarm.report.text import HOVER_LINES, HOVER_WIDTH, TICK_WIDTH, hover_text, plotly_text, tick_text, visible


@pytest.mark.parametrize(
    ("acting", "shown"),
    [
        ("\x1b[31m", "␛[31m"),
        ("\x00\x07\x7f", "␀␇␡"),
        ("\r\n", "␍\n"),
        ("\x9b31m", "⟨U+009B⟩31m"),
        ("a\u202eb\u2066", "a⟨U+202E⟩b⟨U+2066⟩"),
        ("\u2028\ufeff\u200b", "⟨U+2028⟩⟨U+FEFF⟩⟨U+200B⟩"),
        ("\ud800", "⟨U+D800⟩"),
        ("\U000e0041", "⟨U+E0041⟩"),
    ],
)
def test_acting_characters_become_signs(acting: str, shown: str) -> None:
    assert visible(acting) == shown


@pytest.mark.parametrize("text", ["tab\tand\nnewline", "עברית العربية", "👩🏽\u200d🔬 𝕏", "σ₁ − δ ≥ 0"])
def test_text_that_only_reads_stays(text: str) -> None:
    assert visible(text) == text


def test_plotly_reads_neither_markup_nor_entities_nor_templates() -> None:
    assert plotly_text("<b>&lt;%{x}\n") == "&lt;b&gt;&amp;lt;%&#123;x}<br>"


def test_hover_text_is_wrapped_and_cut() -> None:
    lines = hover_text(["x" * (HOVER_WIDTH + 1), "<i>"]).split("<br>")
    assert lines == ["x" * HOVER_WIDTH, "x", "&lt;i&gt;"]
    long = hover_text(["a\n" * 100]).split("<br>")
    assert len(long) == HOVER_LINES
    assert long[-1] == "…"


def test_a_long_tick_keeps_both_ends() -> None:
    text = tick_text("model.layers.11.self_attn.q_proj")
    assert len(text) == TICK_WIDTH
    assert text.startswith("model.")
    assert text.endswith("attn.q_proj")
    assert tick_text("") == " "
