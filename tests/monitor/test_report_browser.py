"""The report in a real browser: nothing that a policy writes runs, asks the network or breaks the page's width."""

import shutil

import pytest
from report_runs import HOSTILE, rollouts_of, run

from guerdon.monitor.report import write_comparison, write_report
from guerdon.rewards.base import Fault

CHROMIUM = shutil.which("chromium")
sync_api = pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A report and a comparison of runs whose every text is hostile, and very long."""
    place, text = tmp_path_factory.mktemp("hostile"), f"{HOSTILE} {'y' * 100_000}{HOSTILE}"
    folder = run(place / f"demo {'z' * 60}", steps=3, text=text)
    folder.add_alarm({"step": 1, "code": HOSTILE, "severity": HOSTILE, "message": text[:5000], "evidence": {}})
    folder.add_faults(2, [Fault("task", 1, "killed", HOSTILE * 20)], rollouts_of("language", 2, text))
    other = run(place / "other", steps=3)
    return [write_report(folder.path), write_comparison([folder.path, other.path], place / "compare.html")]


@pytest.mark.parametrize("width", [390, 1180])
def test_hostile_texts_neither_run_nor_ask_nor_widen_the_page(browser, files, width):
    page = browser.new_page(viewport={"width": width, "height": 800})
    asked, said = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
    for file in files:
        page.goto(file.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.locator("script, img").count() == 0
    assert (asked, said) == ([file.as_uri() for file in files], [])
    page.close()


def test_the_keyboard_shows_the_credit_behind_each_token(browser, tmp_path):
    page = browser.new_page()
    page.goto(write_report(run(tmp_path / "demo", steps=1).path).as_uri())
    shown = "getComputedStyle(document.querySelector('.talk .t'), '::after').content"
    assert page.evaluate(shown) == "none"
    for _ in range(100):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.matches('.talk')"):
            break
    credit = page.evaluate("document.querySelector('.talk .t').dataset.c")
    assert page.evaluate(shown) == f'"{credit}"'
    page.close()
