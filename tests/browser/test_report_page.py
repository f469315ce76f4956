"""The report as a reader sees it: in a browser, offline, light and dark, wide and narrow, with and without scripts."""

from __future__ import annotations

import base64
from itertools import pairwise
from pathlib import Path

import pytest
from chromium import Browser, require
from hostile_report import HOSTILE, hostile
from sample_report import sample
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from nullarm.report import write_html
from nullarm.report.palette import PAGE, TONES
from nullarm.report.text import visible

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def sample_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sample") / "report.html"
    write_html(sample(), path)
    return path


@pytest.fixture(scope="module")
def hostile_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hostile") / "report.html"
    write_html(hostile(), path)
    return path


def rgb(colour: str) -> str:
    return f"rgb({', '.join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))})"


def assert_quiet(browser: Browser, path: Path) -> None:
    assert browser.console() == []
    asked = browser.requests()
    assert path.as_uri() in asked
    assert [url for url in asked if url != path.as_uri() and not url.startswith(("data:", "blob:"))] == []


@pytest.mark.parametrize(("theme", "width"), [("light", 1280), ("dark", 400)])
def test_every_figure_is_drawn_without_an_error_or_a_request(
    browser: Browser, sample_page: Path, theme: str, width: int
) -> None:
    browser.open(sample_page, theme="dark" if theme == "dark" else "light", width=width)
    browser.draw_all()
    assert browser.run("return document.querySelectorAll('.plot .main-svg').length") > 10
    assert browser.run("return document.documentElement.scrollWidth <= innerWidth")
    assert_quiet(browser, sample_page)


def test_the_checks_see_an_error_and_a_request(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text("<img src='file:///nowhere.png'><script>throw Error('loud')</script>")
    browser.open(page)
    assert any("loud" in message for message in browser.console())
    assert "file:///nowhere.png" in browser.requests()


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_the_verdict_is_read_first_and_large(browser: Browser, sample_page: Path, theme: int) -> None:
    browser.open(sample_page, theme="dark" if theme else "light")
    word = browser.driver.find_element(By.CSS_SELECTOR, ".verdict .word")
    assert word.text == "✓ CONFIRMED"
    assert word.is_displayed()
    assert float(word.value_of_css_property("font-size").removesuffix("px")) >= 40
    assert browser.run("return getComputedStyle(arguments[0]).color", word) == rgb(TONES["found"][theme])
    assert browser.run("return getComputedStyle(document.body).backgroundColor") == rgb(PAGE["paper"][theme])
    reason = browser.driver.find_element(By.CSS_SELECTOR, ".verdict .reason")
    assert reason.text.startswith("Audited ranks beat their own shuffles in all five seeds")
    assert browser.run("return arguments[0].getBoundingClientRect().bottom <= innerHeight", reason)


def test_figures_follow_the_theme(browser: Browser, sample_page: Path) -> None:
    browser.open(sample_page, theme="dark")
    browser.draw_all()
    papers = "return [...document.querySelectorAll('.plot')].map((plot) => plot.layout.paper_bgcolor)"
    assert set(browser.run(papers)) == {PAGE["paper"][1]}
    features = {"features": [{"name": "prefers-color-scheme", "value": "light"}]}
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", features)
    browser.settle()
    assert set(browser.run(papers)) == {PAGE["paper"][0]}


def test_verdicts_and_tables_are_read_without_scripts(browser: Browser, sample_page: Path) -> None:
    browser.open(sample_page, scripts=False)
    try:
        text = browser.driver.find_element(By.TAG_NAME, "main").text
        hint = browser.run("const n = document.querySelector('noscript'); return n.offsetHeight > 0 && n.innerText")
    finally:
        browser.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    assert "✓ CONFIRMED" in text
    assert "0.7200" in text
    assert hint == "The figure needs JavaScript. Its numbers are below."
    assert not browser.driver.find_elements(By.CSS_SELECTOR, ".main-svg")


def test_hostile_text_neither_runs_nor_draws(browser: Browser, hostile_page: Path) -> None:
    browser.open(hostile_page)
    browser.draw_all()
    assert browser.run("return window.pwned === undefined")
    count = "return document.querySelectorAll(arguments[0]).length"
    assert browser.run(count, "img, iframe, [onerror], [onload], [onmouseover]") == 0
    assert browser.run(count, "svg a, .plot b, .plot tspan[style*=bold]") == 0
    assert browser.run(count, "script:not([type])") == 2
    assert_quiet(browser, hostile_page)


def test_hostile_labels_are_drawn_as_themselves(browser: Browser, hostile_page: Path) -> None:
    browser.open(hostile_page)
    browser.draw_all()
    drawn = browser.run("return [...document.querySelectorAll('.plot .annotation-text')].map((a) => a.textContent)")
    squeezed = {"".join(text.split()) for text in drawn}
    short = [text for text in HOSTILE if len(visible(text)) < 80]
    assert len(short) > 25
    for text in short:
        assert "".join(f"• {visible(text)}".split()) in squeezed


def test_hostile_hover_is_shown_as_itself(browser: Browser, hostile_page: Path) -> None:
    browser.open(hostile_page)
    browser.draw_all()
    shown = browser.run(
        """
        const plot = [...document.querySelectorAll(".plot")].find((p) => p.data[0].mode === "lines+markers");
        return plot.data.map((_, curve) => {
          Plotly.Fx.hover(plot, [{ curveNumber: curve, pointNumber: 0 }]);
          return [...plot.querySelectorAll(".hovertext .nums, .hovertext .name")].map((n) => n.textContent).join("");
        });
        """
    )
    assert len(shown) == len(HOSTILE)
    for text, hover in zip(HOSTILE, shown, strict=True):
        assert "".join(visible(text).split()) in "".join(hover.split())
    assert browser.run("return window.pwned === undefined && !document.querySelector('.hovertext a')")


def test_a_click_on_a_point_leads_to_its_cell(browser: Browser, sample_page: Path) -> None:
    browser.open(sample_page)
    browser.draw_all()
    row = browser.run(
        """
        const plot = [...document.querySelectorAll(".plot")].find((p) => p.data.some((t) => t.type === "heatmap"));
        plot.emit("plotly_click", { points: [{ data: plot.data[0] }] });
        return document.querySelector("tr:target").textContent;
        """
    )
    assert "audited · seed 42" in row


def test_a_series_can_be_hidden_in_all_panels(browser: Browser, sample_page: Path) -> None:
    browser.open(sample_page)
    browser.draw_all()
    hidden = browser.run(
        """
        const button = [...document.querySelectorAll(".legend button")].find((b) => b.textContent === "layer 1");
        button.click();
        const plots = [...button.closest("figure").querySelectorAll(".plot")];
        return [button.getAttribute("aria-pressed"), plots.map((p) => p.data.map((t) => t.visible ?? true))];
        """
    )
    assert hidden == ["false", [[True, False, True]] * 7]


def test_a_band_is_hidden_with_its_line(browser: Browser, sample_page: Path) -> None:
    browser.open(sample_page)
    browser.draw_all()
    seen = browser.run(
        """
        const figure = [...document.querySelectorAll("figure")].find((f) => f.textContent.includes("Change by layer"));
        const plots = [...figure.querySelectorAll(".plot")];
        const look = () => plots.map((p) => p.data.map((t) => [t.fill ?? "none", t.visible ?? true]));
        const before = look();
        figure.querySelector(".legend button").click();
        return [before, look()];
        """
    )
    shown, hidden = [["toself", True], ["none", True]], [["toself", False], ["none", False]]
    bands_first = [[shown[0], shown[0], shown[1], shown[1]]] * 2
    assert seen == [bands_first, [[hidden[0], shown[0], hidden[1], shown[1]]] * 2]


def test_a_wide_heatmap_scrolls_on_a_narrow_page_and_keeps_its_labels_apart(
    browser: Browser, sample_page: Path
) -> None:
    browser.open(sample_page, width=400)
    browser.draw_all()
    panel, labels = browser.run(
        """
        const plot = [...document.querySelectorAll(".plot")].find((p) => p.data[0]?.z?.[0].length === 48);
        const ticks = [...plot.querySelectorAll(".xtick text")].map((t) => t.getBoundingClientRect());
        const panel = plot.closest(".panel");
        return [[panel.scrollWidth, panel.clientWidth], ticks.map((t) => [t.left, t.right])];
        """
    )
    assert panel[0] > panel[1]
    assert len(labels) == 24
    assert all(left[1] <= right[0] + 1 for left, right in pairwise(labels))
    assert browser.run("return document.documentElement.scrollWidth <= innerWidth")


def test_no_button_sends_a_chart_away(browser: Browser, sample_page: Path) -> None:
    browser.open(sample_page)
    browser.draw_all()
    titles = browser.run("return [...document.querySelectorAll('.modebar-btn')].map((b) => b.dataset.title)")
    assert set(titles) == {"Download plot as a PNG", "Zoom", "Pan", "Reset axes"}


def test_printing_draws_every_figure_on_white(browser: Browser, sample_page: Path) -> None:
    browser.open(sample_page, theme="dark")
    drawn = browser.run(
        """
        window.dispatchEvent(new Event("beforeprint"));
        const plots = [...document.querySelectorAll(".plot")];
        const seen = plots.map((p) => [p.layout?.paper_bgcolor, p.layout?.width <= 700]);
        window.dispatchEvent(new Event("afterprint"));
        return [seen, getComputedStyle(document.body).backgroundColor];
        """
    )
    assert len(drawn[0]) > 10
    assert all(figure == [PAGE["paper"][0], True] for figure in drawn[0])
    assert drawn[1] == rgb(PAGE["paper"][1])
    pdf = browser.driver.execute_cdp_cmd("Page.printToPDF", {})
    assert base64.b64decode(pdf["data"]).startswith(b"%PDF")
    assert_quiet(browser, sample_page)


def test_a_table_is_downloaded_in_full(browser: Browser, sample_page: Path, tmp_path: Path) -> None:
    behaviour = {"behavior": "allow", "downloadPath": str(tmp_path), "eventsEnabled": True}
    browser.driver.execute_cdp_cmd("Browser.setDownloadBehavior", behaviour)
    browser.open(sample_page)
    browser.run("document.querySelector('a[download=\"accuracy-by-arm-and-seed.csv\"]').click()")
    saved = tmp_path / "accuracy-by-arm-and-seed.csv"
    WebDriverWait(browser.driver, 60).until(lambda _: saved.exists())
    text = saved.read_text()
    assert text.startswith("arm,seed 42,seed 43,seed 44,seed 45,seed 46,mean,parameters,cells\nprobe,0.72,")


def test_a_heatmap_says_its_labels_and_cell_on_hover(browser: Browser, sample_page: Path) -> None:
    browser.open(sample_page)
    browser.draw_all()
    shown = browser.run(
        """
        const plot = [...document.querySelectorAll(".plot")].find((p) => p.data[0].type === "heatmap");
        Plotly.Fx.hover(plot, { xval: 2, yval: 1 });
        return [...plot.querySelectorAll(".hovertext tspan.line")].map((line) => line.textContent);
        """
    )
    assert shown[:2] == ["depth layer 1 · module v", "rank: 8"]
    assert shown[2].startswith("cell ")


def test_without_chromium_the_tests_are_skipped_or_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NULLARM_REQUIRE_ALL", "")
    with pytest.raises(pytest.skip.Exception, match="no-such-browser"):
        require("no-such-browser")
    monkeypatch.setenv("NULLARM_REQUIRE_ALL", "1")
    with pytest.raises(pytest.fail.Exception, match="no-such-browser"):
        require("no-such-browser")
