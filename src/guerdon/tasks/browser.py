"""One headless Chromium per process, whose tabs hold pages of MiniWoB++."""

from __future__ import annotations

import atexit
import importlib.util
import os
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

# What keeps pages in tabs that are not in front as quick as the one that is, and the browser from calling home.
FLAGS = (
    "--headless",
    "--no-sandbox",  # as root, which containers are, Chromium has no sandbox; the pages are the package's own files
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-timer-throttling",
    "--disable-backgrounding-occluded-windows",
    "--disable-renderer-backgrounding",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--process-per-site",  # tabs share a process: 32 of them take 0.5 GB in all, and 0.9 with one each
    "--remote-debugging-pipe",  # the browser ends with its driver, however that ends
)
DAY = 24 * 3600 * 1000  # milliseconds; the time limit of a page, which is 10 seconds otherwise
SCRIPT_SECONDS = 20


def browser_paths() -> tuple[str, str] | None:
    """Where Chromium and ChromeDriver are, or None where one is missing."""
    chromium = os.environ.get("MINIWOB_CHROME_BINARY") or shutil.which("chromium") or shutil.which("google-chrome")
    driver = os.environ.get("MINIWOB_CHROMEDRIVER") or shutil.which("chromedriver")
    return (chromium, driver) if chromium and driver else None


def pages_folder() -> Path | None:
    """Where MiniWoB++ keeps its pages, or None where the package is not installed."""
    spec = importlib.util.find_spec("miniwob")
    return None if spec is None or spec.origin is None else Path(spec.origin).parent / "html" / "miniwob"


class _Browser:
    """The browser of this process, begun when the first tab is opened and begun anew when it has died."""

    _current: _Browser | None = None

    def __init__(self) -> None:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        paths = browser_paths()
        assert paths is not None
        options = webdriver.ChromeOptions()
        options.binary_location = paths[0]
        for flag in FLAGS:
            options.add_argument(flag)
        # A session of its own: Ctrl-C is the trainer's to handle, which finishes its step before it ends.
        service = Service(executable_path=paths[1], popen_kw={"start_new_session": True})
        self.driver = webdriver.Chrome(service=service, options=options)
        # Reads from this process, so it learns of its end whatever that was, and ends the driver.
        watch = f"read _; kill {service.process.pid} 2>/dev/null"
        self._watcher = subprocess.Popen(["sh", "-c", watch], stdin=subprocess.PIPE, start_new_session=True)
        self.driver.set_script_timeout(SCRIPT_SECONDS)
        self.owner = os.getpid()
        self.free: list[Tab] = []
        atexit.register(self.quit)

    @classmethod
    def current(cls) -> _Browser:
        """The browser, alive."""
        if cls._current is not None and cls._current.owner == os.getpid() and not cls._current.alive():
            cls._current.quit()
            cls._current = None
        if cls._current is None or cls._current.owner != os.getpid():
            cls._current = cls()
        return cls._current

    def alive(self) -> bool:
        """Whether it still answers."""
        try:
            return bool(self.driver.window_handles)
        except Exception:
            return False

    def quit(self) -> None:
        """End it, if this process began it."""
        if self.owner == os.getpid():
            atexit.unregister(self.quit)
            with suppress(Exception):
                self.driver.quit()
            self._watcher.communicate()


class Tab:
    """A tab with a page; released tabs are used again.

    Pages differ in what they show of themselves, so a tab tells nothing but what the page's own protocol
    (``core.getDOMInfo``, ``core.getUtterance``) says.
    """

    def __init__(self, browser: _Browser) -> None:
        self._browser, self._page = browser, ""
        browser.driver.switch_to.new_window("tab")
        self._handle = browser.driver.current_window_handle
        # Only one tab has the focus otherwise, and pages of the others are told of none.
        browser.driver.execute_cdp_cmd("Emulation.setFocusEmulationEnabled", {"enabled": True})

    @classmethod
    def open(cls, page: str) -> Tab:
        """A free tab, best one that holds the page already, or else a new one."""
        browser = _Browser.current()
        if not browser.free:
            return cls(browser)
        best = next((tab for tab in browser.free if tab._page == page), browser.free[-1])
        browser.free.remove(best)
        return best

    def release(self) -> None:
        """Leave the tab to whoever needs one next."""
        self._browser.free.append(self)

    def begin(self, page: str, seed: int, mode: str) -> dict[str, Any]:
        """Begin an episode of a page in a data mode (``train``, ``test``), and say what is seen."""
        driver = self._front()
        if page != self._page:
            folder = pages_folder()
            assert folder is not None
            driver.get(f"file://{folder}/{page}.html")
            self._page = page
        return _read(driver.execute_async_script(_BEGIN, DAY, seed, mode))

    def click(self, ref: int, then_type: str | None = None) -> dict[str, Any]:
        """Click an element, replace what it holds if there is something to type, and say what is seen."""
        from miniwob.selenium_actions import execute_type_text

        driver = self._front()
        seen = driver.execute_script(f"{_CLICK}{_LOOK}", ref, bool(then_type))
        if not then_type or seen["done"]:
            return _read(seen)
        execute_type_text(then_type, driver)
        return self.look()

    def click_at(self, x: int, y: int) -> dict[str, Any]:
        """Click at a place, in pixels, and say what is seen."""
        from miniwob.selenium_actions import execute_click_coords

        execute_click_coords(x, y, self._front())
        return self.look()

    def press(self, key: str) -> dict[str, Any]:
        """Press a key or a combination such as ``C-c``, and say what is seen; a key that MiniWoB++ does not
        count as safe is not pressed."""
        from miniwob.constants import DEFAULT_ALLOWED_KEYS
        from miniwob.selenium_actions import execute_press_key

        *modifiers, last = key.split("-") if len(key) > 1 else [key]
        named = "-".join([*modifiers, last if len(last) == 1 else f"<{last}>"])
        if named in DEFAULT_ALLOWED_KEYS:
            execute_press_key(named, self._front())
        return self.look()

    def look(self) -> dict[str, Any]:
        """``done``, ``reward`` (-1 to 1, whatever the time), ``utterance`` and ``elements`` in the page's order."""
        return _read(self._front().execute_script(_LOOK))

    def _front(self) -> Any:
        driver = self._browser.driver
        driver.switch_to.window(self._handle)
        return driver


def _read(seen: dict[str, Any]) -> dict[str, Any]:
    """What a page says of itself, with its elements in a row."""
    if not seen["done"]:
        seen["elements"] = _flat(seen.pop("dom"))
    return seen


def _flat(dom: dict[str, Any]) -> list[dict[str, Any]]:
    """Elements of a page in its own order; those that lie within others after them."""
    tag, children = str(dom["tag"]).lower(), dom["children"]
    text = dom.get("text")
    if children and all(str(child["tag"]).lower() == "t" for child in children):
        text, children = " ".join(str(child.get("text", "")) for child in children), []
    if tag == "a" or "alink" in str(dom.get("classes", "")).split():
        tag = "link"
    own = {"ref": dom["ref"], "tag": tag, "text": text, "value": dom.get("value"), "leaf": not children}
    return [own, *(element for child in children for element in _flat(child))]


_LOOK = """
if (WOB_DONE_GLOBAL) return {done: true, reward: WOB_RAW_REWARD_GLOBAL};
const said = core.getUtterance();
return {done: false, utterance: typeof said === "string" ? said : said.utterance, dom: core.getDOMInfo()};
"""
_CLICK = """
const [ref, replace] = arguments, clicked = core.previousDOMInfo[ref];
core.elementClick(ref);
if (replace && clicked && clicked.select) clicked.select();
"""
_BEGIN = f"""
const [limit, seed, mode, tell] = arguments;
const look = () => {{{_LOOK}}};
core.EPISODE_MAX_TIME = limit;
core.endEpisode(0);
Math.seedrandom(seed);
core.setDataMode(mode);
core.startEpisodeReal();
const wait = (n) => (WOB_TASK_READY || n == 0) ? tell(look()) : setTimeout(() => wait(n - 1), 20);
wait(200);
"""
