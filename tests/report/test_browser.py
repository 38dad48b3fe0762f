"""The page over many runs in Chromium: it logs no error, sorts, filters, shows tooltips, downloads and fits its width."""

import csv
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cdpo_lightning.report.sweep.report_files import build_sweep
from tests.report.synthetic import write_sweep

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM.exists(), reason="there is no Chromium: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator:
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install -e '.[browser]'")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def twelve(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_sweep(tmp_path_factory.mktemp("browser") / "grid", 12)
    return build_sweep([folder], folder / "report")


@pytest.fixture(params=[(1280, 900), (390, 844)], ids=["desktop", "phone"])
def page(request, browser, twelve: Path) -> Iterator:
    """The page at both widths; a message on the console fails the test."""
    width, height = request.param
    opened = browser.new_page(viewport={"width": width, "height": height}, accept_downloads=True)
    text_shown: list[str] = []
    opened.on("console", lambda message: text_shown.append(message.text))
    opened.on("pageerror", lambda error: text_shown.append(str(error)))
    opened.goto(twelve.as_uri())
    yield opened
    assert text_shown == []
    assert opened.evaluate("window.broken") is None, "a sample ran as a script"
    opened.close()


def column(page, at: int) -> list[str]:
    return page.locator(f"#results tbody tr > :nth-child({at})").all_inner_texts()


def test_it_fits_its_width(page) -> None:
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_heading_sorts(page) -> None:
    heads = page.locator("#results thead button")
    position = heads.all_inner_texts().index("E[cost]")
    for direction in (1, -1):
        heads.nth(position).click()
        costs = [float(text.replace("−", "-")) for text in column(page, position + 1)]
        assert costs == sorted(costs, reverse=direction < 0)
    assert page.locator("#results th[aria-sort=descending]").count() == 1


def test_filters_choose_runs_and_are_kept_when_the_page_is_loaded_anew(page) -> None:
    page.locator("select[name='policy.beta']").select_option("0.3")
    assert page.locator("#count").inner_text() == "3 of 12 runs shown"
    page.locator("input[name=others]").uncheck()
    assert page.locator("#results tbody tr").count() == 3
    assert page.locator("#frontier path.point").count() == 3
    page.reload()
    assert page.locator("#count").inner_text() == "3 of 12 runs shown"
    assert page.locator("#results tbody tr").count() == 3
    page.locator("input[name=find]").fill("nothing like it")
    assert page.locator("#count").inner_text() == "0 of 12 runs shown"
    page.goto("about:blank")


def test_a_point_shows_its_configuration(page) -> None:
    page.locator("input[name=others]").uncheck()
    spot = page.locator("#frontier path.point[data-run='5']").bounding_box()
    page.mouse.move(spot["x"] + spot["width"] / 2, spot["y"] + spot["height"] / 2)
    tip = page.locator("#tip").inner_text()
    assert "run 5" in tip
    assert "beta: 0.3" in tip
    assert "c_limit: −0.5" in tip
    assert "lambda: 1.7 (exact 1.69)" in tip
    assert page.locator("#frontier svg text", has_text="above the limit −0.5").count() == 1, "its own limit is shaded"
    page.mouse.click(spot["x"] + spot["width"] / 2, spot["y"] + spot["height"] / 2)
    assert "python run.py policy.beta=0.3 constraint.c_limit=-0.5" in page.locator("#detail").inner_text()


def test_the_table_downloads_as_it_is_shown(page, tmp_path: Path) -> None:
    page.locator("select[name='constraint.c_limit']").select_option("-0.2")
    page.locator("input[name=others]").uncheck()
    with page.expect_download() as started:
        page.locator("#csv").click()
    started.value.save_as(tmp_path / "sweep.csv")
    rows = list(csv.DictReader((tmp_path / "sweep.csv").read_text(encoding="utf-8").splitlines()))
    assert started.value.suggested_filename == "sweep.csv"
    assert [(row["beta"], row["c_limit"], row["method"]) for row in rows] == [
        (b, "-0.2", "C-DPO") for b in ("0.1", "0.3", "0.5", "1")
    ]


def test_responses_to_one_prompt_are_side_by_side_behind_a_warning(page) -> None:
    assert not page.locator("#prompts .prompt-text").first.is_visible()
    page.locator("#samples summary").click()
    assert page.locator("#prompts .prompt-text").all_inner_texts()[0] == "How?"
    first = page.locator("#prompts .prompt").first.locator(".response")
    assert first.count() == 13
    assert "cdpo answers <b>0</b>" in first.nth(1).inner_text()


def test_every_part_is_drawn(page) -> None:
    assert page.locator("#frontier path.exact").count() == 4
    assert page.locator("#frontier path.star").count() == 12
    assert page.locator("#rounds svg").count() == 2
    assert page.locator("#rounds path.line").count() == 24
    assert page.locator("#tails svg").count() == 4
    assert page.locator("#categories td").count() == 24


def test_five_hundred_runs_load_within_three_seconds(browser, tmp_path: Path) -> None:
    written = build_sweep([write_sweep(tmp_path, 500)], tmp_path / "report", live=True)
    opened = browser.new_page()
    begin = time.monotonic()
    opened.goto(written.as_uri())
    assert opened.locator("#count").inner_text() == "500 of 500 runs shown"
    seconds = time.monotonic() - begin
    opened.close()
    assert seconds < 3


def test_one_run_is_shown_with_its_details(browser, tmp_path: Path) -> None:
    written = build_sweep([write_sweep(tmp_path, 1)], tmp_path / "report")
    opened = browser.new_page()
    opened.goto(written.as_uri())
    assert "python run.py policy.beta=0.1" in opened.locator("#detail").inner_text()
    opened.close()
