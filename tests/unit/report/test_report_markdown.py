from __future__ import annotations

import pytest
from hostile_report import ALL, HOSTILE, hostile
from markdown_it import MarkdownIt
from markdown_it.token import Token
from sample_report import cell_id, sample

from nullarm.report import Code, Document, Section, Table, Text
from nullarm.report.markdown import inline, render_markdown
from nullarm.report.text import visible


def tokens(text: str) -> list[Token]:
    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    return [part for token in parser.parse(text) for part in (token, *(token.children or []))]


def document(*blocks: Text | Code | Table) -> Document:
    return Document(title="t", question="q", sections=(Section("s", blocks),))


@pytest.mark.parametrize("text", HOSTILE)
def test_inline_text_reads_as_itself(text: str) -> None:
    kinds = tokens(inline(text))
    assert {t.type for t in kinds} <= {"paragraph_open", "paragraph_close", "inline", "text", "text_special"}
    shown = "".join(t.content for t in kinds if t.type in ("text", "text_special"))
    assert shown == " ".join(visible(text).split())


def test_names_of_modules_need_no_escape() -> None:
    assert inline("layers.0.self_attn.q_proj [+0.02, +0.04]") == "layers.0.self_attn.q_proj [+0.02, +0.04]"


def test_hostile_text_makes_no_markup() -> None:
    text = render_markdown(hostile())
    kinds = {t.type for t in tokens(text)}
    assert not kinds & {"html_block", "html_inline", "link_open", "image", "s_open", "em_open", "code_inline"}
    assert not any(c < " " and c != "\n" for c in text)
    assert "\u202e" not in text


def test_hostile_tables_keep_their_shape() -> None:
    for table in render_markdown(hostile()).split("\n\n"):
        if table.startswith("| "):
            rows = [t for t in tokens(table) if t.type in ("tr_open", "th_open", "td_open")]
            widths = "".join("r" if t.type == "tr_open" else "c" for t in rows).split("r")[1:]
            assert len(set(widths)) == 1


def test_a_fence_outlasts_its_code() -> None:
    code = next(t for t in tokens(render_markdown(document(Code(f"````\n{ALL}")))) if t.type == "fence")
    assert code.content == visible(f"````\n{ALL}") + "\n"


def test_verdicts_come_first_and_say_all() -> None:
    text = render_markdown(sample())
    first = text.index("## ✓ CONFIRMED: Placement")
    assert first < text.index("## ? INCONCLUSIVE: Compression") < text.index("## How far apart")
    for said in (
        "| estimate | +0.031 accuracy |",
        "[+0.021, +0.041]",
        "| p, adjusted | 0.00026 |",
        "| n | 5 seeds × 200 items, 5 shuffles each |",
        "| margin | ± 0.01 |",
        "| minimum detectable effect | 0.015 |",
        "| n that would settle it | 9 |",
        "(exploratory)",
        "cannot rule out a loss",
    ):
        assert said in text


def test_every_cell_is_in_the_appendix() -> None:
    appendix = render_markdown(sample()).split("## Cells")[1]
    assert f"| {cell_id('audited', 42)} | retrain · audited · seed 42 | ok |" in appendix


def test_large_charts_are_left_to_the_html(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "see the HTML report" not in render_markdown(sample())
    monkeypatch.setattr("nullarm.report.markdown.SHOWN_VALUES", 100)
    assert "336 rows of numbers: see the HTML report." in render_markdown(sample())


def test_the_same_document_gives_the_same_text() -> None:
    assert render_markdown(sample()) == render_markdown(sample())


def test_an_empty_table_keeps_its_head() -> None:
    assert "| a | b |\n| --- | --- |" in render_markdown(document(Table("t", ("a", "b"), ())))
