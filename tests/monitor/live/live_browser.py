"""What the browser tests share: how the browser is started, and what they ask a page."""

import shutil

from live_runs import until

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
# "Good" is 0.1 by the usual measure; here nothing should move at all.
SHIFT = 0.02
COUNT_SHIFTS = """
window.shift = 0; window.shifts = [];
new PerformanceObserver(list => { for (const entry of list.getEntries()) if (!entry.hadRecentInput) {
  window.shift += entry.value; window.shifts.push(entry.sources.map(s => s.node?.outerHTML?.slice(0, 80)));
} }).observe({ type: "layout-shift", buffered: true });
"""


def at(page, path):
    page.goto(page.home.rstrip("/") + path)
    page.wait_for_selector("#live.on")


def becomes(page, expression):
    """Wait for something to become true; the page's policy forbids that the page itself evaluates the text."""
    until(lambda: page.evaluate(expression))


def names(page):
    return page.locator("tbody th a").all_inner_texts()


def shift(page):
    return page.evaluate("window.shift")
