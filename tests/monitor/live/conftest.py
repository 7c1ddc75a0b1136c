import pytest
from live_browser import CHROMIUM, COUNT_SHIFTS, FLAGS
from live_runs import served, write_run


@pytest.fixture(scope="module")
def chromium():
    """One browser for the tests of a module."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="the browser tests need playwright")
    if CHROMIUM is None:
        pytest.skip("the browser tests need chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs that have ended, one that goes on, and one beside the folder that must not be seen."""
    runs = tmp_path_factory.mktemp("browser") / "runs"
    for k in range(8):
        write_run(runs / f"word-{k}", steps=3 + k, task="spell" if k % 2 else "countdown")
    write_run(runs / "going", steps=4, end=None, task="digits")
    write_run(runs.parent / "outside", task="the-secret")
    return runs


@pytest.fixture(scope="module")
def server(runs):
    with served(runs) as server:
        yield server


@pytest.fixture
def page(chromium, server):
    """A page that has the token; whatever it complains about fails the test, as does a request to elsewhere."""
    context = chromium.new_context(viewport={"width": 1280, "height": 800}, reduced_motion="reduce")
    context.set_default_timeout(15_000)
    page = context.new_page()
    page.complaints, page.elsewhere = [], []
    home = server.address.partition("?")[0]
    page.on("console", lambda m: page.complaints.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on("request", lambda r: None if r.url.startswith((home, "data:")) else page.elsewhere.append(r.url))
    page.add_init_script(COUNT_SHIFTS)
    page.home = home
    page.goto(server.address)
    yield page
    assert page.complaints == []
    assert page.elsewhere == []
    context.close()
