"""Web pages of MiniWoB++ in headless Chromium, read as a list of elements and acted on in words."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import Field

from guerdon.errors import RecipeError, TaskError, nearest
from guerdon.registry import register
from guerdon.seeding import derive, numpy_generator
from guerdon.tasks.base import Problem
from guerdon.tasks.browser import Tab, browser_paths, pages_folder
from guerdon.tasks.environments import EnvironmentTask, Seconds, Step, Turns

Pay = Literal["win", "partial"]

INSTALL = "task 'webnav' needs the package miniwob; pip install \"guerdon[web]\""
NO_BROWSER = (
    "task 'webnav' needs Chromium and ChromeDriver, and found neither on the PATH nor in MINIWOB_CHROME_BINARY and "
    "MINIWOB_CHROMEDRIVER; on Debian: apt-get install chromium chromium-driver"
)
FORMS = "an action is: click N, click TEXT, type N TEXT, press KEY, or at X Y"
HELD_OUT = 2**30  # seeds of pages from here on are never trained on
# Pages that ``shown_way`` knows the way through.
SHOWN = ("click-test", "click-button", "click-link", "focus-text", "enter-text", "enter-password", "login-user")
_ACTION = re.compile(
    r"\s*(?:click (?P<click>\d+)|click (?P<said>.+?)|type (?P<type>\d+) (?P<text>.+?)"
    r"|press (?P<key>\S+)|at (?P<x>\d+) (?P<y>\d+))\s*",
    re.DOTALL,
)
_MARK = re.compile(r"([^\w\s]|_)")


class Element(NamedTuple):
    """What can be read or acted on: its number, what it is, what it says, and what it holds."""

    ref: int
    tag: str
    text: str
    value: str

    def __str__(self) -> str:
        said = " ".join(part for part in (self.text, f'"{self.value}"' if self.value else "") if part)
        return f"{self.ref} {self.tag} {said}".strip()


class WebPage:
    """One page.

    An observation is the page's task and its elements, one a line: number, kind, text and, in quotes, what was entered.
    Actions are ``click N``, ``click TEXT`` (the first button, link or else element that says so), ``type N TEXT``
    (which replaces what the element holds), ``press KEY`` (``Enter``, ``Tab``, a digit) and ``at X Y`` (clicks there,
    in pixels).

    Args:
        pay: ``win`` pays 1 for what the page counts as fully right, ``partial`` what it gives, at least 0. Neither
            depends on how long it took.
        spaced: whether punctuation stands apart from words, for tokenizers that split at spaces.
    """

    def __init__(self, pay: Pay = "win", spaced: bool = False) -> None:
        self._pay, self._spaced = pay, spaced
        self._tab: Tab | None = None

    def reset(self, problem: Problem, seed: int) -> Step:
        """Make the page that the problem names anew; nothing else is random."""
        page, page_seed = problem.start
        if self._tab is None:
            self._tab = Tab.open(page)
        return self._heard(self._tab.begin(page, page_seed, "test" if page_seed >= HELD_OUT else "train"))

    def step(self, action: str) -> Step:
        """Act; what is no action, or names no element, changes nothing and is told so."""
        assert self._tab is not None
        form = _ACTION.fullmatch(action)
        if form is None:
            return self._heard(None, f"{FORMS} .")
        if form["key"]:
            return self._heard(self._tab.press(form["key"]))
        if form["x"]:
            return self._heard(self._tab.click_at(int(form["x"]), int(form["y"])))
        named = form["click"] or form["type"]
        ref = self._called(form["said"]) if named is None else int(named)
        if ref not in {element.ref for element in self.elements}:
            return self._heard(None, f"there is no element {form['said'] or named} .")
        return self._heard(self._tab.click(ref, form["text"]))

    def close(self) -> None:
        """Give the tab back."""
        if self._tab is not None:
            self._tab.release()
            self._tab = None

    def _heard(self, seen: dict[str, Any] | None, remark: str = "") -> Step:
        if seen is not None:
            if seen["done"]:
                won = float(seen["reward"])
                paid = float(won >= 1) if self._pay == "win" else max(won, 0.0)
                return Step("the end .", paid, terminated=True, info={"state": "end", "won": won >= 1})
            self.utterance, self.elements = " ".join(seen["utterance"].split()), readable(seen["elements"])
        lines = [self.utterance, *map(str, self.elements)]
        state = list(lines)
        text = "\n".join([remark, *lines] if remark else lines)
        return Step(self.worded(text), info={"state": state})

    def _called(self, text: str) -> int | None:
        """Number of the element that says a text, best in the same case; spaces don't count."""
        wanted = "".join(text.split())
        said = [(e, "".join(e.text.split())) for e in self.elements if e.text]
        same = [e for e, letters in said if letters == wanted]
        same += [e for e, letters in said if letters.lower() == wanted.lower()]
        acted = [e for e in same if e.tag in ("button", "link")]
        return next((e.ref for e in acted or same), None)

    def worded(self, text: str) -> str:
        """A text as the policy reads it."""
        if not self._spaced:
            return text
        return "\n".join(" ".join(_MARK.sub(r" \1 ", line).split()) for line in text.split("\n"))


def readable(elements: Sequence[dict[str, Any]]) -> list[Element]:
    """Of a page's elements those that say something or can be acted on, in the page's order."""
    out = []
    for e in elements:
        value = e["value"] if isinstance(e["value"], str) else {True: "on", False: "", None: ""}.get(e["value"], "")
        tag, text = e["tag"].removeprefix("input_"), " ".join((e["text"] or "").split())
        acted = e["tag"].startswith("input") or tag in ("button", "link", "select", "textarea")
        if tag != "t" and (acted or (e["leaf"] and text)):
            out.append(Element(e["ref"], tag, text, " ".join(str(value).split())))
    return out


def shown_way(utterance: str, elements: Sequence[Element]) -> str:
    """The next right action on one of the pages in ``SHOWN``: fill what is asked for, then click what is asked for."""
    wanted = re.findall(r'"(.*?)"', utterance)
    inputs = [e for e in elements if e.tag in ("text", "password")]
    buttons = [e for e in elements if e.tag in ("button", "submit")]
    asked = [e for e in elements if e.tag in ("button", "link") and wanted and e.text == wanted[0]]
    if asked:
        return f"click {asked[0].ref}"
    if inputs and wanted:
        values = [wanted[min(place, len(wanted) - 1)] for place in range(len(inputs))]
        for element, value in zip(inputs, values, strict=True):
            if element.value != value:
                return f"type {element.ref} {value}"
    return f"click {(buttons if wanted or not inputs else inputs)[0].ref}"


@register("task", name="webnav")
class WebNav(EnvironmentTask):
    """Pages of MiniWoB++ in a real browser: one sentence says what to do, and the page itself says whether it was done.

    All pages of a process are tabs of one headless Chromium; a crash of it costs the episodes that it held. The time
    limit that pages have by default is off, so that nothing depends on the machine's speed.

    Args:
        pages: names of pages, drawn with equal chances; any of MiniWoB++'s.
        named: whether demonstrations name what they click by its text, where it has some, and not by its number.
        instances: seeds of each page to train on; held-out ones are others.
        pay, spaced: see ``WebPage``.
        skill: what a warm start imitates: the chance that an action of a demonstration is right; others click or fill
            something at random. None makes no demonstrations, which only the pages in ``SHOWN`` have.
        max_turns, workers, timeout: see ``EnvironmentTask``.

    Raises:
        RecipeError: when the package or the browser is missing.
        TaskError: for a page that does not exist, or has no demonstrations and ``skill`` asks for some.

    Source: Liu et al. 2018, arXiv 1802.08802.
    """

    def __init__(
        self,
        *,
        pages: Annotated[list[str], Field(min_length=1)],
        instances: Annotated[int, Field(ge=1, lt=HELD_OUT)] = 64,
        pay: Pay = "win",
        spaced: bool = False,
        named: bool = False,
        skill: Annotated[float, Field(ge=0, le=1)] | None = None,
        max_turns: Turns = 5,
        workers: int = 0,
        timeout: Seconds = 60.0,
    ) -> None:
        super().__init__(max_turns=max_turns, workers=workers, timeout=timeout)
        folder = pages_folder()
        if folder is None:
            raise RecipeError(INSTALL)
        if browser_paths() is None:
            raise RecipeError(NO_BROWSER)
        for page in pages:
            _check_page(page, folder)
        unknown = sorted(set(pages) - set(SHOWN)) if skill is not None else []
        if unknown:
            raise TaskError(
                f"task 'webnav': no demonstrations are known of {unknown}; leave out skill (and warm_start), or use "
                f"pages of {list(SHOWN)}"
            )
        self.pages, self.instances, self.named, self.skill = list(pages), instances, named, skill
        self._make = partial(WebPage, pay, spaced)
        self._known: dict[tuple[str, int], Problem] = {}

    def environment(self) -> Callable[[], WebPage]:
        """One page."""
        return self._make

    def train_batch(self, n: int, seed: int) -> list[Problem]:
        """Pages drawn with replacement, with demonstrations if ``skill`` asks for them."""
        drawn = numpy_generator(seed, "webnav").integers([len(self.pages), self.instances], size=(n, 2))
        return [self._problem(self.pages[page], int(instance)) for page, instance in drawn]

    def eval_problems(self, n: int) -> list[Problem]:
        """Held-out instances, the pages in turn."""
        return [_start(self.pages[i % len(self.pages)], HELD_OUT + i) for i in range(n)]

    def corpus(self) -> Iterable[str]:
        """What training pages show along their demonstrations, and the forms of actions."""
        yield f"{FORMS} . there is no element the end ."
        yield " ".join(map(str, range(40)))
        for page in self.pages:
            for instance in range(self.instances):
                problem = self._shown(page, instance, 0.0) if self.skill is None else self._problem(page, instance)
                yield from (problem.prompt, *problem.episode)

    def _problem(self, page: str, instance: int) -> Problem:
        if self.skill is None:
            return _start(page, instance)
        if (page, instance) not in self._known:
            self._known[page, instance] = self._shown(page, instance, self.skill)
        return self._known[page, instance]

    def _shown(self, page: str, instance: int, skill: float) -> Problem:
        """A problem with what is read and done on the way through it."""
        random, web, problem = numpy_generator(instance, "webnav", page), self._make(), _start(page, instance)
        said = [web.reset(problem, 0).observation]
        for _ in range(self.max_turns):
            good = random.random() < skill
            action = shown_way(web.utterance, web.elements) if good else _some_action(web, random)
            said.append(web.worded(_by_text(action, web.elements) if self.named else action))
            heard = web.step(said[-1])
            if heard.terminated:
                break
            said.append(heard.observation)
        web.close()
        return replace(problem, prompt=said[0], episode=tuple(said[1 : len(said) - len(said) % 2]))


def _some_action(page: WebPage, random: np.random.Generator) -> str:
    """Click an element, or type a word of the task into one that can hold it."""
    element = page.elements[int(random.integers(len(page.elements)))]
    if element.tag in ("text", "password", "textarea"):
        words = re.findall(r"\w+", page.utterance)
        return f"type {element.ref} {words[int(random.integers(len(words)))]}"
    return f"click {element.ref}"


def _by_text(action: str, elements: Sequence[Element]) -> str:
    """A click on an element that says something, by what it says."""
    verb, *rest = action.split(" ", 1)
    text = next((e.text for e in elements if verb == "click" and rest == [str(e.ref)]), "")
    return f"click {text}" if text else action


def _start(page: str, seed: int) -> Problem:
    return Problem(task_id=derive(0, "webnav", page, seed), start=(page, seed), metadata={"page": page})


def _check_page(page: str, folder: Path) -> None:
    known = sorted(path.stem for path in folder.glob("*.html"))
    if page not in known:
        raise TaskError(f"task 'webnav': MiniWoB++ has no page '{page}'{nearest(page, known)}")
