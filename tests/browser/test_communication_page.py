"""The report of a communication study as a reader sees it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from chromium import Browser

from nullarm.analysis import analyse
from nullarm.protocols.kv_communication.parameters import Channel
from nullarm.protocols.kv_communication.report.document import document
from nullarm.report import write_html
from support.communications import ARMS, FakeArm, communication_store, finish_all, modulo

pytestmark = pytest.mark.browser

WIDER = """return [...document.querySelectorAll('.scroll')]
  .filter(e => e.scrollWidth > e.clientWidth).map(e => e.getAttribute('aria-label'))"""


def test_every_table_fits_the_page(browser: Browser, tmp_path: Path) -> None:
    arms = {
        **ARMS,
        "text_64_bytes": replace(ARMS["text"], message_bytes=2000),
        "qwen3_4b_base": FakeArm(Channel(fusers=("other",)), lambda i: i % 2 == 0, 8000),
        "expected_attention_half": FakeArm(Channel(fusers=("other",), codec="int4"), lambda i: i % 3 == 0, 2000),
    }
    store = communication_store(tmp_path / "study", arms, datasets=("words", "sums"), calibrate=True)
    finish_all(store, arms, cluster=modulo(9))
    write_html(document(store, analyse(store, ("evaluate",))), tmp_path / "report.html")
    browser.open(tmp_path / "report.html", width=1280)
    assert browser.run("return document.querySelectorAll('.scroll').length") > 20
    assert browser.run(WIDER) == []
