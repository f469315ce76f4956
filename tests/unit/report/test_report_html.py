from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, cast

import pytest
from hostile_report import ALL, HOSTILE, hostile
from sample_report import cell_id, sample

from nullarm.errors import StorageError
from nullarm.report import Document, Section, Text, VerdictCard, write_html, write_markdown
from nullarm.report.html import render_html
from nullarm.report.text import visible

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """Elements, attributes and texts of a page; fails on an element that is closed out of turn."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self._open[-1] if self._open else "", data))

    def attributes(self, name: str) -> list[str]:
        return [value or "" for _, attrs in self.elements for key, value in attrs.items() if key == name]


@cache
def page(name: str) -> Page:
    return Page(rendered(name))


@cache
def rendered(name: str) -> str:
    return render_html({"sample": sample, "hostile": hostile}[name]())


def executable(text: str) -> list[str]:
    return re.findall(r"<script>(.*?)</script>", text, re.DOTALL)


@pytest.mark.parametrize("name", ["sample", "hostile"])
def test_only_our_scripts_run(name: str) -> None:
    scripts = [attrs for tag, attrs in page(name).elements if tag == "script"]
    assert all(attrs == {"type": "application/json"} for attrs in scripts[:-2])
    assert scripts[-2:] == [{}, {}]
    policy = next(content for content in page(name).attributes("content") if "default-src" in content)
    ours = {base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in executable(rendered(name))}
    assert set(re.findall(r"'sha256-([^']+)'", policy)) == ours
    assert "default-src 'none'" in policy
    assert "connect-src 'none'" in policy
    assert "unsafe-eval" not in policy
    assert "script-src 'sha256-" in policy


@pytest.mark.parametrize("name", ["sample", "hostile"])
def test_nothing_is_loaded_from_anywhere(name: str) -> None:
    for attribute in ("src", "srcset", "action", "poster", "data"):
        assert page(name).attributes(attribute) == []
    for link in page(name).attributes("href"):
        assert re.match(r"#|\./|data:,$|data:text/csv;", link), link


def test_hostile_text_makes_no_element_and_no_handler() -> None:
    made = {tag for tag, _ in page("hostile").elements}
    assert made == {tag for tag, _ in page("sample").elements}
    names = {name for _, attrs in page("hostile").elements for name in attrs}
    assert not {name for name in names if name.startswith("on")}


def test_hostile_text_is_read_as_itself() -> None:
    texts = "\n".join(data for _, data in page("hostile").texts)
    for text in HOSTILE:
        assert visible(text) in texts
    assert visible(ALL) in texts


def test_no_acting_character_is_left() -> None:
    body = re.sub(r"<script>.*?</script>", "", rendered("hostile"), flags=re.DOTALL)
    assert visible(body) == body


def test_a_record_is_a_relative_link_whatever_its_path() -> None:
    links = page("hostile").attributes("href")
    assert "./javascript%3Awindow.pwned%3D1" in links
    assert f"./cells/{cell_id('audited', 42)}/record.json" in page("sample").attributes("href")


@pytest.mark.parametrize("name", ["sample", "hostile"])
def test_every_link_to_a_cell_leads_to_a_row(name: str) -> None:
    ids = set(page(name).attributes("id"))
    targets = {link[1:] for link in page(name).attributes("href") if link.startswith("#")}
    assert targets
    assert targets <= ids


@pytest.mark.parametrize("name", ["sample", "hostile"])
def test_figures_are_json_without_nan(name: str) -> None:
    def refuse(constant: str) -> Any:
        raise AssertionError(constant)

    specs = [data for tag, data in page(name).texts if tag == "script" and data.startswith('{"data"')]
    assert len(specs) >= 6
    for spec in specs:
        figure = json.loads(spec, parse_constant=refuse)
        assert set(figure) == {"data", "layout"}
        assert "template" not in figure["layout"]


def test_the_verdict_is_first_and_says_all() -> None:
    texts = [data.strip() for _, data in page("sample").texts if data.strip()]
    text = " ".join(texts)
    assert text.index("CONFIRMED") < text.index("INCONCLUSIVE") < text.index("How far apart the arms are")
    for said in ("+0.031", "[+0.021, +0.041]", "0.00026", "unadjusted 0.00013", "n = 5", "± 0.01", "0.015", "n = 9"):
        assert said in text
    assert "in all five seeds, by three times the margin" in text
    assert "cannot rule out a loss as large as the margin" not in text  # glosses belong to the primary verdict


def test_the_same_document_gives_the_same_bytes() -> None:
    assert render_html(sample()) == rendered("sample")


def test_a_report_without_charts_carries_no_plotly() -> None:
    text = render_html(Document(title="t", question="q", sections=(Section("s", (Text("only text"),)),)))
    assert len(text) < 40_000
    assert "plotly.js" not in text
    assert "plotly.js" in rendered("sample")


def test_a_family_without_a_primary_contrast_says_so() -> None:
    card = VerdictCard(name="a", verdict="NO_OP", reason="Equal hashes.")
    assert "No primary contrast was declared." in render_html(Document(title="t", question="q", verdicts=(card,)))


def test_a_verdict_without_numbers_is_shown_with_dashes() -> None:
    card = VerdictCard(name="a", verdict="INVALID", reason="Seed 43 is missing.", primary=True)
    text = render_html(Document(title="t", question="q", verdicts=(card,)))
    assert "Seed 43 is missing." in text
    assert "<dt>Estimate</dt><dd>—</dd>" in text
    assert "not declared" in text


def test_a_large_chart_keeps_its_numbers_out_of_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nullarm.report.html.SHOWN_VALUES", 0)
    monkeypatch.setattr("nullarm.report.html.EMBEDDED_VALUES", 0)
    text = render_html(sample())
    assert "Numbers of this figure" not in text
    assert "too many to carry in this file" in text


def test_a_block_of_another_type_is_refused() -> None:
    blocks = cast("tuple[Text, ...]", ("text",))
    with pytest.raises(ValueError, match="no template for a block of type str"):
        render_html(Document(title="t", question="q", sections=(Section("s", blocks),)))


def test_files_are_written_whole(tmp_path: Path) -> None:
    write_html(sample(), tmp_path / "report.html")
    write_markdown(sample(), tmp_path / "report.md")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.md"]
    assert (tmp_path / "report.html").read_bytes().decode() == rendered("sample")
    with pytest.raises(StorageError, match=r"cannot write .*report\.html"):
        write_html(sample(), tmp_path / "missing" / "report.html")


def test_the_report_layer_imports_neither_torch_nor_plotly_before_it_writes() -> None:
    code = "import sys, nullarm.report; print([m for m in ('torch', 'plotly', 'jinja2') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
