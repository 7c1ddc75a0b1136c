"""The live page in a real browser while runs are written: what is followed, what waits, and that nothing moves."""

import threading

import pytest
from live_browser import SHIFT, at, becomes, names, shift
from live_runs import log_steps, raise_alarm, served, write_run

import guerdon
from guerdon.training.folder import RunFolder

# Following a run ----------------------------------------------------------------------------------------------


def test_a_live_run_is_followed_and_nothing_moves(page, runs):
    folder = write_run(runs / "live", steps=6, end=None)
    at(page, "/run/live")
    page.locator("details summary").first.click()
    page.wait_for_timeout(600)  # what follows a click within half a second does not count as a shift
    page.evaluate("window.shift = 0")
    line = page.locator(".panel polyline").first.get_attribute("points")
    page.evaluate("window.first = document.querySelector('.panel')")
    for first in (6, 9, 12):
        log_steps(folder, first, 3)
        page.wait_for_selector(f".standing >> text=step {first + 3} / 40")
    becomes(page, f"document.querySelector('.panel polyline').getAttribute('points') !== '{line}'")
    assert page.evaluate("window.first.isConnected")
    assert page.locator("details").first.get_attribute("open") is not None
    assert shift(page) < SHIFT, page.evaluate("window.shifts")


def test_the_first_curves_of_a_run_appear_by_themselves(page, runs):
    folder = write_run(runs / "begun", steps=0, end=None)
    at(page, "/run/begun")
    assert page.locator("svg.chart").count() == 0
    folder.log(0, {"reward/mean": 0.25, "update/loss": 1.0})
    folder.flush()
    page.wait_for_selector("svg.chart")
    assert page.locator("#notice").is_hidden()
    assert shift(page) < SHIFT, page.evaluate("window.shifts")


def test_what_would_move_the_page_waits_for_the_reader(page, runs):
    folder = write_run(runs / "alarmed", steps=6, end=None)
    at(page, "/run/alarmed")
    raise_alarm(folder, 5, message="the policy has stopped exploring")
    page.wait_for_selector("#notice >> text=alarms")
    assert page.locator("text=the policy has stopped exploring").count() == 0
    assert page.locator(".standing").inner_text().endswith("1 warning")
    assert shift(page) < SHIFT
    page.locator("#notice button").click()
    page.wait_for_selector("text=the policy has stopped exploring")
    assert page.locator("#notice").is_hidden()


def test_what_lies_above_is_updated_and_what_is_read_stays_in_place(page, runs):
    folder = write_run(runs / "scrolled", steps=6, end=None)
    at(page, "/run/scrolled")
    page.evaluate("document.querySelector('.charts').scrollIntoView({ block: 'start' })")
    place = page.evaluate("document.querySelector('.charts').getBoundingClientRect().top")
    page.wait_for_timeout(200)
    page.evaluate("window.shift = 0")
    raise_alarm(folder, 5, message="nothing is learned " * 40)
    page.wait_for_selector("text=nothing is learned")
    assert page.locator("#notice").is_hidden()
    assert page.evaluate("document.querySelector('.charts').getBoundingClientRect().top") == pytest.approx(place, abs=1)
    assert shift(page) < SHIFT, page.evaluate("window.shifts")


def test_selected_text_stays_selected(page, runs):
    folder = write_run(runs / "selected", steps=6, end=None)
    at(page, "/run/selected")
    page.locator(".panel h3").first.select_text()
    chosen = page.evaluate("String(getSelection())")
    log_steps(folder, 6, 3)
    page.wait_for_selector("#notice >> text=curves")
    assert page.evaluate("String(getSelection())") == chosen
    page.locator("#notice button").click()
    assert page.locator("#notice").is_hidden()


def test_rollouts_under_the_microscope_stay_until_the_reader_asks(page, runs):
    folder = write_run(runs / "sampling", steps=6, end=None)
    at(page, "/run/sampling?view=rollouts")
    log_steps(folder, 6, 2)
    page.wait_for_selector("#notice >> text=rollouts")
    assert page.locator("[name=step]").input_value() == "5"
    page.locator("#notice button").click()
    becomes(page, "document.querySelector('[name=step]').value === '7'")


def test_rows_of_the_list_follow_their_runs_and_others_wait(page, runs):
    folder = RunFolder.open(runs / "going")
    at(page, "/?q=going")
    page.get_by_label("compare going").check()
    page.locator("tbody th a").first.focus()
    page.wait_for_timeout(600)
    page.evaluate("window.shift = 0")
    columns = "[...document.querySelectorAll('thead th')].map(th => th.getBoundingClientRect().left)"
    places = page.evaluate(columns)
    log_steps(folder, 1234564, 4)
    raise_alarm(folder, 1234567, "critical")
    page.wait_for_selector("td.steps >> text=1234568 / 40")
    page.wait_for_selector("td.alarms >> text=1 critical")
    assert page.evaluate(columns) == places
    assert page.get_by_label("compare going").is_checked()
    assert page.evaluate("document.activeElement.closest('tr').dataset.live") == "going"
    assert shift(page) < SHIFT
    write_run(runs / "going-too")
    page.wait_for_selector("#notice >> text=runs")
    assert names(page) == ["going"]
    page.locator("#notice button").click()
    becomes(page, "document.querySelectorAll('tbody tr').length === 2")
    page.locator("#clear").click()


def test_a_run_that_trains_is_followed_to_its_end(page, runs):
    recipe = {
        **{"name": "trained", "runs_dir": str(runs), "task": {"name": "gymnasium", "env": "CartPole-v1"}},
        **{"policy": {"name": "control", "hidden": [8]}, "sampling": {"prompts": 4, "group_size": 2}},
        **{"credit": "grpo", "rewards": ["task"], "training": {"steps": 6}, "evaluation": {"every": 3, "problems": 2}},
        **{"logging": {"rollouts_every": 2}},
    }
    at(page, "/?q=trained")
    training = threading.Thread(target=guerdon.train, args=(guerdon.load_recipe(recipe),))
    training.start()
    page.wait_for_selector("#notice >> text=runs")
    page.locator("#notice button").click()
    page.wait_for_selector("tbody th >> text=trained")
    training.join(60)
    page.wait_for_selector("tr >> text=finished")
    assert page.locator("td.steps").inner_text() == "6 / 6"
    page.locator("tbody th a").click()
    page.wait_for_selector("text=Training reward")
    page.get_by_role("link", name="Rollouts").click()
    page.wait_for_selector("[name=step]")


def test_a_page_connects_again_when_the_server_returns(chromium, runs):
    folder = write_run(runs / "resumed", steps=4, end=None)
    page = chromium.new_context().new_page()
    with served(runs, token=False) as first:
        port = first.listener.getsockname()[1]
        page.home = first.address
        at(page, "/run/resumed")
    page.wait_for_selector("#live.off")
    log_steps(folder, 4, 2)
    with served(runs, token=False, port=port):
        page.wait_for_selector(".standing >> text=step 6 / 40")
        page.wait_for_selector("#live.on")
        assert "step 6 / 40" in page.locator(".standing").inner_text()
        page.context.close()
