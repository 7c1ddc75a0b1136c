import html
import re
from html.parser import HTMLParser
from urllib.parse import quote

import pytest
from live_runs import HOSTILE, add_fault, raise_alarm, write_run
from starlette.testclient import TestClient

from guerdon.monitor.live.app import create_app
from guerdon.monitor.live.pages import COMPARED

BASE = "http://127.0.0.1"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    runs = tmp_path_factory.mktemp("live") / "runs"
    write_run(runs / "first", steps=8)
    write_run(runs / "sweep" / "second", steps=4, end=None, task="countdown")
    hostile = write_run(runs / "third <b>&\"'", text=HOSTILE)
    raise_alarm(hostile, 1, message=HOSTILE)
    add_fault(hostile, 2, HOSTILE, text=HOSTILE)
    return runs


@pytest.fixture(scope="module")
def browser(runs):
    return TestClient(create_app(runs, token=None)[0], base_url=BASE, raise_server_exceptions=False)


def rows_of(page):
    return re.findall(r'<tr data-live="([^"]*)"', page)


# The list -----------------------------------------------------------------------------------------------------


def test_the_list_shows_filters_and_sorts(browser):
    assert sorted(rows_of(browser.get("/").text)) == sorted(
        ["first", "sweep%2Fsecond", quote("third <b>&\"'", safe="")]
    )
    assert rows_of(browser.get("/?q=countdown").text) == ["sweep%2Fsecond"]
    assert rows_of(browser.get("/?status=running").text) == ["sweep%2Fsecond"]
    assert rows_of(browser.get("/?sort=steps").text)[0] == "first"
    assert rows_of(browser.get("/?sort=steps&order=up").text)[0] == "sweep%2Fsecond"
    nothing = browser.get("/?q=nowhere+to+be+found").text
    assert rows_of(nothing) == []
    assert "No run has all of these words" in nothing


def test_an_empty_folder_says_how_a_run_comes_about(tmp_path):
    page = TestClient(create_app(tmp_path, token=None)[0], base_url=BASE).get("/")
    assert page.status_code == 200
    assert "guerdon train" in page.text


def test_some_rows_can_be_had_alone(browser):
    got = browser.get("/part/rows?run=first&run=gone&run=sweep%2Fsecond")
    assert rows_of(got.text) == ["first", "sweep%2Fsecond"]
    assert browser.get("/part/rows?" + "&".join(["run=a"] * 201)).status_code == 400


# A run --------------------------------------------------------------------------------------------------------


def test_a_run_shows_header_alarms_curves_rollouts_and_recipe(browser):
    overview = browser.get("/run/first").text
    for text in ("Training reward", "Alarms", "held-out greedy", '8<span class="soft"> / 40</span>'):
        assert text in overview
    rollouts = browser.get("/run/first?view=rollouts").text
    assert "groups 1 to 3 of 5" in rollouts
    assert "question 4" in rollouts
    assert "question 0" not in rollouts
    assert "eps: 0.1" in overview


def test_a_run_in_a_folder_is_reached_by_either_form_of_its_name(browser):
    for address in ("/run/sweep%2Fsecond", "/run/sweep/second", "/run/sweep%2Fsecond/part/curves"):
        assert browser.get(address).status_code == 200


def test_the_pager_leads_through_all_groups_and_steps(browser):
    page = browser.get("/run/first?view=rollouts&sort=row").text
    (later,) = re.findall(r'rel="next" href="([^"]*)"', page)
    second = browser.get(html.unescape(later)).text
    assert "groups 4 to 5 of 5" in second
    assert "question 3" in second
    assert 'rel="next"' not in second
    (earlier,) = re.findall(r'rel="prev" href="([^"]*)"', second)
    assert "groups 1 to 3 of 5" in browser.get(html.unescape(earlier)).text
    assert "no group from 100 on" in browser.get("/run/first?view=rollouts&first=99").text


def test_each_part_can_be_had_alone(browser):
    whole = browser.get("/run/first").text
    for part in ("standing", "header", "alarms", "faults", "curves"):
        got = browser.get(f"/run/first/part/{part}")
        assert got.status_code == 200
        assert "<html" not in got.text
        assert got.text.strip() in whole
    assert "question" in browser.get("/run/first/part/microscope?step=7&first=3").text


def test_runs_are_compared(browser):
    page = browser.get("/compare?run=first&run=sweep%2Fsecond&run=first")
    assert page.status_code == 200
    assert "2 runs compared" in page.text
    assert browser.get("/part/compare?run=first&run=sweep%2Fsecond").text.strip() in page.text


@pytest.mark.parametrize(
    ("address", "status", "message"),
    [
        ("/run/nowhere", 404, "no run of that name"),
        ("/run/nowhere/part/curves", 404, "no run of that name"),
        ("/compare?run=first&run=nowhere", 404, "no run of that name"),
        ("/compare?run=first", 400, "choose two runs or more"),
        ("/compare", 400, "choose two runs or more"),
        ("/compare?" + "&".join(f"run={k}" for k in range(COMPARED + 1)), 400, "are too many"),
        ("/run/first/part/credits", 400, "parts standing, header"),
        ("/run/first?view=secrets", 400, "the views overview, rollouts"),
        ("/run/first?view=rollouts&step=x", 400, "step is a whole number"),
        ("/run/first?view=rollouts&step=-1", 400, "step is a whole number"),
        ("/run/first?view=rollouts&first=1;drop", 400, "first is a whole number"),
        ("/run/first?view=rollouts&sort=reward", 400, "sorted by spread, best, worst, row"),
        ("/run/first?view=rollouts&step=3", 200, "has no rollouts of step 3"),
        ("/?sort=nothing", 400, "no column"),
        ("/static/nothing.js", 404, "no file of that name"),
        ("/anything/else", 404, "no page at this address"),
        ("/events/../static", 404, "no page at this address"),
        ("/events?" + "&".join(f"run={k}" for k in range(201)), 400, "are too many"),
    ],
)
def test_what_is_not_there_is_said_in_plain_words(browser, address, status, message):
    got = browser.get(address)
    assert got.status_code == status
    assert message in html.unescape(got.text)
    assert "Traceback" not in got.text


def test_a_damaged_file_leaves_the_other_parts_standing(runs, browser):
    broken = write_run(runs / "broken")
    broken.metrics_path.write_bytes(b"PAR1 torn")
    page = browser.get("/run/broken")
    assert page.status_code == 200
    assert "This part can't be shown" in page.text
    assert "None was raised" in page.text
    assert "eps: 0.1" in page.text
    assert browser.get("/run/broken?view=rollouts").text.count("This part") == 0
    assert browser.get("/").status_code == 200


# Hostile addresses and texts ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "/",
        f"/run/{quote('third <b>&', safe='')}%22%27",
        f"/run/{quote('third <b>&', safe='')}%22%27?view=rollouts",
        f"/compare?run=first&run={quote('third <b>&', safe='')}%22%27",
        f"/?q={quote(HOSTILE)}",
        f"/?sort={quote(HOSTILE)}",
        f"/run/{quote(HOSTILE, safe='')}",
        f"/run/first?view={quote(HOSTILE)}",
        f"/static/{quote(HOSTILE, safe='')}",
    ],
)
def test_hostile_text_stays_text(browser, address):
    page = browser.get(address).text
    tags = Tags(page).found
    assert [attributes["src"].partition("?")[0] for tag, attributes in tags if tag == "script"] == ["/static/view.js"]
    assert all(attributes["src"].startswith("data:image/png") for tag, attributes in tags if tag == "img")
    assert not [name for _, attributes in tags for name in attributes if name.startswith("on")]
    assert not any(ord(c) < 32 and c not in "\n\t" for c in page)


def test_the_hostile_text_is_there_to_be_read(browser):
    name = quote("third <b>&\"'", safe="")
    for view in ("", "?view=rollouts"):
        assert "window.hacked" in Tags(browser.get(f"/run/{name}{view}").text).text


class Tags(HTMLParser):
    """What a browser makes of a page: its tags with their attributes, and its text."""

    def __init__(self, page):
        super().__init__()
        self.found, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


def test_pages_hold_no_inline_script_or_style_and_load_nothing_from_elsewhere(browser):
    for address in ("/", "/run/first", "/run/first?view=rollouts", "/compare?run=first&run=sweep%2Fsecond"):
        page = browser.get(address).text
        assert not re.findall(r"<style|<script(?![^>]* src=)| style=| on\w+=\"|javascript:", page)
        loaded = re.findall(r'(?:src|href|action)="([^"]*)"', page)
        assert loaded
        assert all(link.startswith(("/", "#", "data:")) and not link.startswith("//") for link in loaded)


def test_assets_may_be_kept_and_data_may_not(browser):
    page = browser.get("/")
    assert page.headers["cache-control"] == "no-store"
    for asset in re.findall(r'="(/static/[^"]*)"', page.text):
        got = browser.get(asset)
        assert got.status_code == 200
        assert "immutable" in got.headers["cache-control"]
        assert len(asset.partition("?v=")[2]) == 12


def test_head_gives_the_headers_alone(browser):
    got = browser.head("/")
    assert (got.status_code, got.content) == (200, b"")


def test_what_goes_wrong_inside_is_said_and_guarded(runs, monkeypatch):
    app, _ = create_app(runs, token=None)
    monkeypatch.setattr("guerdon.monitor.live.pages.listed", lambda *_: 1 / 0)
    got = TestClient(app, base_url=BASE, raise_server_exceptions=False).get("/")
    assert got.status_code == 500
    assert "ZeroDivisionError" in got.text
    assert "content-security-policy" in got.headers
