"""A headless Chromium with what the tests ask of it."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from selenium.webdriver import Chrome

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@dataclass(frozen=True)
class Browser:
    """A running Chromium with what the tests ask of it."""

    driver: Chrome

    def open(
        self, path: Path, *, theme: Literal["light", "dark"] = "light", width: int = 1280, scripts: bool = True
    ) -> None:
        """Open a file, with the logs emptied before."""
        media = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.get("about:blank")
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": not scripts})
        self.console()
        self.requests()
        self.driver.get(path.as_uri())

    def run(self, script: str, *arguments: Any) -> Any:
        """The value of the JavaScript `script` in the page."""
        return self.driver.execute_script(script, *arguments)

    def console(self) -> list[str]:
        """Messages of the console since the last call; a violated policy is one of them."""
        return [entry["message"] for entry in self.driver.get_log("browser")]  # type: ignore[no-untyped-call]

    def requests(self) -> list[str]:
        """Addresses that the page asked for since the last call."""
        entries = self.driver.get_log("performance")  # type: ignore[no-untyped-call]
        messages = [json.loads(entry["message"])["message"] for entry in entries]
        return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]

    def settle(self) -> None:
        """Wait until the page has shown two frames, which is after it heard of a change."""
        self.driver.execute_async_script(
            "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(() => done()))"
        )

    def draw_all(self) -> None:
        """Scroll through the whole page, so that every figure is drawn."""
        self.driver.execute_async_script(
            """
            const done = arguments[0];
            const plots = [...document.querySelectorAll(".plot")];
            const step = () => {
              const open = plots.find((plot) => !plot.querySelector(".main-svg"));
              if (!open) { scrollTo(0, 0); requestAnimationFrame(() => done()); return; }
              open.scrollIntoView();
              requestAnimationFrame(() => setTimeout(step));
            };
            step();
            """
        )


def require(*names: str) -> str:
    """The first of some programs that is there; skips the test when none is."""
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        reason = f"none of these programs is installed: {', '.join(names)}"
        if os.environ.get("NULLARM_REQUIRE_ALL") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return found
