"""The generated pages are those that the code generates now."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path

import pytest
from pages import ROOT

GENERATED: dict[Path, Callable[[], str]] = runpy.run_path(str(ROOT / "docs" / "generate.py"))["PAGES"]


@pytest.mark.parametrize("page", GENERATED, ids=lambda p: p.name)
def test_the_page_is_up_to_date(page: Path) -> None:
    assert page.read_text(encoding="utf-8") == GENERATED[page](), "run `make docs`"


def test_both_pages_are_generated() -> None:
    assert {page.name for page in GENERATED} == {"cli.md", "study.schema.json"}
