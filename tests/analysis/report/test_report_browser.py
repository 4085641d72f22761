"""The report, and the page of features, in headless Chromium, at the widths of a phone, a tablet and a desk."""

import os
import re
import shutil

import pytest

from analysis.features.comparison import comparison
from analysis.features.matching import compare
from analysis.features.page import page as page_of_features
from analysis.features.stored import stored
from analysis.report import write_report
from tests.analysis.featured import HOSTILE, random_activations, write_features
from tests.analysis.outputs import add_run
from tests.analysis.trained import add_trained

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SWITCHES = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
PATIENCE_MS = 150_000  # for machines that do other things too
WIDTHS = (360, 768, 1280)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.browser,
    pytest.mark.skipif(
        CHROMIUM is None and os.environ.get("CI") != "true",
        reason="chromium is not installed (apt-get install chromium)",
    ),
]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    outputs = tmp_path_factory.mktemp("browser") / "outputs"
    for number, fvu in enumerate((0.31, 0.05, 0.2)):
        add_trained(outputs, f"run{number}", {"architecture.lr": 0.001 * (number + 1)}, {"fvu": fvu})
    error = "<img src=//example.com/x onerror=alert(1)>"
    add_run(outputs, "run3", {"architecture.lr": 0.1}, state="failed", error=error)
    return write_report([outputs], outputs / "report.html", figures=["pareto"])


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    assert CHROMIUM, "CI needs chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=SWITCHES)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser):
    """Opens a file at a width and watches it: any error, dialog or request but the file's own fails the test."""
    pages, wrong = [], []

    def opened(file, width, **more):
        page = browser.new_page(viewport={"width": width, "height": 800}, **more)
        page.set_default_timeout(PATIENCE_MS)
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: wrong.append(dialog.message))
        address = file.as_uri()
        local = (address, "data:", "blob:")
        page.on("request", lambda request: None if request.url.startswith(local) else wrong.append(request.url))
        pages.append(page)
        page.goto(address)
        return page

    yield opened
    for page in pages:
        page.close()
    assert wrong == []


def ids(page):
    return [words.strip() for words in page.locator(".runs tbody tr:visible th[scope=row]").all_inner_texts()]


@pytest.mark.parametrize("width", WIDTHS)
def test_sorts_filters_and_leads_to_runs(visit, file, width):
    page = visit(file, width)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    box = page.locator(".runs").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= width
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth)")

    head = page.locator(".runs th[aria-sort]", has_text="fvu").first
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending" and ids(page) == ["run1", "run2", "run0", "run3"]
    head.locator("button").focus()
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "descending" and ids(page) == ["run0", "run2", "run1", "run3"]

    page.locator(".runs-filter").focus()
    page.keyboard.type("RUN1")
    assert ids(page) == ["run1"] and page.locator("#shown").inner_text() == "1 of 4 rows."
    page.locator(".runs-filter").fill("")
    assert len(ids(page)) == 4

    link = page.locator(".runs a", has_text="run1")
    link.focus()
    page.keyboard.press("Enter")
    section = page.locator("details.run[open]")
    section.wait_for()  # a browser tells of a new address some time after it has it
    assert "run1" in section.locator("summary").inner_text()
    assert section.get_attribute("id") == page.evaluate("location.hash")[1:]
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")  # opened too
    section.locator("summary").click()
    section.wait_for(state="detached")
    link.click()  # the same address again opens it again
    section.wait_for()


def test_reached_by_keys_alone(visit, file):
    page = visit(file, 1280)
    seen = []
    for _ in range(60):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.tagName + '.' + document.activeElement.className"))
    assert {"A.skip", "INPUT.runs-filter", "BUTTON.", "SUMMARY."} <= set(seen)


def test_prints_with_everything_open(visit, file):
    page = visit(file, 768)
    assert page.locator("details.run[open]").count() == 0
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details.run[open]").count() == 4
    page.emulate_media(media="print")
    assert page.locator(".runs-filter").is_hidden() and page.locator("nav").is_hidden()
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details.run[open]").count() == 0


def test_reads_without_scripts_and_in_the_dark(visit, file, browser):
    page = visit(file, 360, java_script_enabled=False, color_scheme="dark")
    assert page.locator(".runs tbody tr").count() == 4 and "4 runs" in page.locator("#summary").inner_text()


def test_figures_to_hover_over(visit, file):
    pytest.importorskip("plotly")
    other = write_report([file.parent], file.with_name("hover.html"), figures=[], interactive=True)
    page = visit(other, 1280)
    page.wait_for_selector("#chart-coordinates svg")
    page.locator("#figures .chart svg.main-svg").nth(2).wait_for(state="attached")  # they are drawn in turn


def test_a_page_of_features(visit, tmp_path):
    folders = [
        write_features(tmp_path / name, random_activations(24, d_sae=140, seed=seed)) for seed, name in enumerate("ab")
    ]
    a, b = (stored(folder, "") for folder in folders)
    file = tmp_path / "features.html"
    file.write_text(page_of_features([a, b], "Two", comparison(compare(a, b))), encoding="utf-8")
    page = visit(file, 1280)
    page.wait_for_selector("html[data-ready]")
    rows, count = page.locator("#features tbody tr"), page.locator("#count")
    assert count.inner_text() == "140 of 140 features of a." and rows.count() == 100

    page.locator("#features th[data-key=density] button").click()
    densities = [float(cell.split()[0]) for cell in page.locator("#features tbody td:nth-child(3)").all_inner_texts()]
    assert densities == sorted(densities, reverse=True)
    page.locator("#query").fill(HOSTILE[0].upper())
    found = set()
    for kind in ("top", "drawn"):
        rank, feature, offset = a[f"{kind}_around"].nonzero()
        tokens = a["tokens"].ravel()[a[f"{kind}_place"][rank, feature] + offset - a.about["before"]]
        found |= set(feature[tokens == 1].tolist())  # HOSTILE[0]
    page.locator("#count", has_text=re.compile(f"^{len(found)} of 140 features")).wait_for()
    assert {int(one) for one in rows.locator("a").all_inner_texts()} == found != set() and "q=" in page.url
    rows.locator("a").first.click()
    page.locator(".feature .token", has_text=HOSTILE[0]).first.wait_for(state="attached")
    assert not page.locator("img, b:has-text('plain')").count()  # tokens and labels are text

    page.goto("about:blank")
    page.goto(f"{file.as_uri()}#feature=b:139,a:7&q=7&sort=feature")  # a link that somebody kept
    page.wait_for_selector("html[data-ready]")
    assert page.locator(".feature h2").all_inner_texts() == ["Feature 139", "Feature 7"]
    for number, (one, j) in enumerate(((b, 139), (a, 7))):
        values = (
            page.locator(".feature")
            .nth(number)
            .locator(".example .own")
            .evaluate_all("all => all.map(s => +s.dataset.value)")
        )
        kept = [one[f"{kind}_around"][:, j, 3][one[f"{kind}_place"][:, j] >= 0].tolist() for kind in ("top", "drawn")]
        assert values == [*kept[0], *kept[1]]
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.emulate_media(media="print")
    assert page.locator("#search").is_hidden() and page.locator(".example").first.is_visible()
