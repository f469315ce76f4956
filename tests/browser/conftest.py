"""Headless Chromium for tests that look at a page as a reader does.

Without Chromium or chromedriver these tests are skipped; with `NULLARM_REQUIRE_ALL=1` they fail instead.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import BROWSERS, FLAGS, Browser, require
from selenium.webdriver import Chrome, ChromeOptions, ChromeService

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "report"))  # the sample documents live there


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One Chromium for all tests, with a profile of its own."""
    options = ChromeOptions()
    options.binary_location = require(*BROWSERS)
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = Chrome(options=options, service=ChromeService(require("chromedriver")))
    driver.set_script_timeout(60)
    try:
        yield Browser(driver)
    finally:
        driver.quit()
