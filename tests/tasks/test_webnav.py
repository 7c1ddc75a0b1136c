import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from guerdon.errors import RecipeError, TaskError
from guerdon.tasks import browser, webnav
from guerdon.tasks.base import Problem
from guerdon.tasks.environments import Failure
from guerdon.tasks.webnav import HELD_OUT, SHOWN, Element, WebNav, WebPage, readable, shown_way

pytest.importorskip("miniwob", reason="the web extra is not installed")
here = pytest.mark.skipif(browser.browser_paths() is None, reason="Chromium and ChromeDriver are not installed")


def element(ref, tag, text="", value=None, leaf=True):
    return {"ref": ref, "tag": tag, "text": text, "value": value, "leaf": leaf}


def test_what_says_nothing_and_can_do_nothing_is_not_read():
    seen = [
        element(1, "body", leaf=False),
        element(2, "div", " two\n lines "),
        element(3, "div", ""),
        element(-1, "t", "loose text"),
        element(4, "input_text", value="typed"),
        element(5, "input_checkbox", value=True),
        element(6, "input_checkbox", value=False),
        element(7, "button", None),
    ]
    assert [str(e) for e in readable(seen)] == [
        "2 div two lines",
        '4 text "typed"',
        '5 checkbox "on"',
        "6 checkbox",
        "7 button",
    ]


@pytest.mark.parametrize(
    ("utterance", "elements", "action"),
    [
        ('Click on the "no" button.', [Element(4, "button", "no", ""), Element(5, "button", "yes", "")], "click 4"),
        ("Click the button.", [Element(4, "button", "Click Me!", "")], "click 4"),
        ("Focus into the textbox.", [Element(3, "text", "", "")], "click 3"),
        ('Enter "Bo" and press Submit.', [Element(3, "text", "", ""), Element(4, "button", "Submit", "")], "type 3 Bo"),
        ('Enter "Bo" and press Submit.', [Element(3, "text", "", "Bo"), Element(4, "button", "Submit", "")], "click 4"),
        (
            'Enter "a" and "b"',
            [Element(3, "text", "", "a"), Element(4, "password", "", ""), Element(5, "button", "Login", "")],
            "type 4 b",
        ),
    ],
)
def test_the_way_through_a_page(utterance, elements, action):
    assert shown_way(utterance, elements) == action


def test_punctuation_can_stand_apart():
    assert WebPage(spaced=True).worded('the "ok" button.\n5 text "a_b"') == 'the " ok " button .\n5 text " a _ b "'


def test_missing_parts_are_named(monkeypatch):
    monkeypatch.setattr(webnav, "browser_paths", lambda: None)
    with pytest.raises(RecipeError, match="apt-get install chromium chromium-driver"):
        WebNav(pages=["click-test"])
    monkeypatch.setattr(webnav, "pages_folder", lambda: None)
    with pytest.raises(RecipeError, match=r"guerdon\[web\]"):
        WebNav(pages=["click-test"])


@here
def test_pages_are_checked():
    with pytest.raises(TaskError, match="did you mean 'click-test'"):
        WebNav(pages=["clik-test"])
    with pytest.raises(TaskError, match=r"no demonstrations are known of \['click-pie'\]"):
        WebNav(pages=["click-pie", "click-test"], skill=0.5)


@pytest.fixture(scope="module")
def shown():
    """A demonstration of every page that has some, each right throughout."""
    task = WebNav(pages=list(SHOWN), skill=1.0)
    return task, [task._problem(page, 0) for page in SHOWN]


@here
def test_demonstrations_are_what_the_pages_answer_and_win(shown):
    task, problems = shown
    session = task.begin(problems, [0] * len(problems))
    assert [step.observation for step in session.reset()] == [p.prompt for p in problems]
    won = {}
    for row, problem in enumerate(problems):
        heard = [session.step([row], [action])[0] for action in problem.episode[::2]]
        assert [step.observation for step in heard[:-1]] == list(problem.episode[1::2])
        won[problem.metadata["page"]] = [(step.reward, step.terminated) for step in heard]
    session.close()
    assert won == {page: [*[(0.0, False)] * (len(steps) - 1), (1.0, True)] for page, steps in won.items()}
    assert len(won["login-user"]) == 3


@here
def test_what_is_no_action_changes_nothing_and_pays_nothing(shown):
    task, _ = shown
    session = task.begin([task._problem("login-user", 0)], [0])
    begun = session.reset()[0]
    for action in ("sing a song", "click 99", "type 99 x", "press F1", "click"):
        heard = session.step([0], [action])[0]
        assert (heard.reward, heard.terminated) == (0.0, False), action
        assert heard.info["state_key"] == begun.info["state_key"], action
    assert session.step([0], ["click 99"])[0].observation.startswith("there is no element 99 .")
    login = next(line.split()[0] for line in begun.observation.splitlines() if line.endswith("button Login"))
    heard = session.step([0], [f"click {login}"])[0]
    session.close()
    assert (heard.reward, heard.terminated, heard.info["won"]) == (0.0, True, False)


@here
def test_what_is_clicked_can_be_named_by_its_text():
    task = WebNav(pages=["login-user", "click-link"], skill=1.0, named=True, spaced=True)
    problems = [task._problem("login-user", 0), task._problem("click-link", 0)]
    assert problems[0].episode[-1] == "click Login"
    assert problems[1].episode[0].split()[:2] == ["click", problems[1].prompt.split('"')[1].split()[0]]
    session = task.begin(problems, [0, 0])
    session.reset()
    for row, problem in enumerate(problems):
        last = [session.step([row], [action])[0] for action in problem.episode[::2]][-1]
        assert (last.reward, last.terminated) == (1.0, True)
    page = WebPage()
    page.reset(Problem(0, start=("login-user", 0)), 0)
    assert page.step("click Nowhere").observation.startswith("there is no element Nowhere .")
    assert page.step("click l o g i n").terminated
    page.close(), session.close()


@here
def test_keys_and_places_act():
    page = WebPage(pay="partial")
    page.reset(Problem(0, start=("login-user", 3)), 0)
    ref = next(e.ref for e in page.elements if e.tag == "text")
    page.step(f"type {ref} xyz")
    page.step(f"type {ref} ab")
    page.step("press Backspace")
    assert next(e.value for e in page.elements if e.ref == ref) == "a"
    page.close()
    page.reset(Problem(0, start=("click-test", 3)), 0)
    ends = [page.step(f"at {x} {y}") for x in range(20, 160, 30) for y in range(70, 210, 30) if page._tab is not None]
    page.close()
    assert max(step.reward for step in ends) == 1.0


@here
def test_held_out_instances_are_others(shown):
    task, _ = shown
    held_out = task.eval_problems(len(SHOWN) + 1)
    assert {p.start[1] >= HELD_OUT for p in held_out} == {True}
    assert len({p.task_id for p in held_out}) == len(SHOWN) + 1
    assert [p.start[0] for p in held_out] == [*SHOWN, SHOWN[0]]


@here
def test_a_browser_that_dies_costs_its_episodes_and_is_begun_anew(shown):
    task, problems = shown
    session = task.begin(problems[:2], [0, 0])
    session.reset()
    os.kill(browser._Browser.current().driver.service.process.pid, signal.SIGKILL)
    heard = session.step([0, 1], ["click 4", "click 4"])
    assert all(isinstance(step, Failure) for step in heard)
    session.close()
    again = task.begin(problems[:1], [0])
    assert again.reset()[0].observation == problems[0].prompt
    again.close()


@here
def test_a_killed_trainer_leaves_no_browser():
    script = (
        "import os, signal; from guerdon.tasks.browser import _Browser, Tab;"
        "Tab.open('click-test'); print(_Browser.current().driver.service.process.pid, flush=True);"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    deadline = time.monotonic() + 10
    while alive(int(done.stdout)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive(int(done.stdout)), "ChromeDriver outlived the process that began it"


def alive(process: int) -> bool:
    status = Path(f"/proc/{process}/stat")
    return status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] != "Z"
