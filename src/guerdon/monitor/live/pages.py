"""The pages of the server as HTML: the list, a run, a comparison, a message. What runs hold comes from the views."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from markupsafe import Markup

from guerdon import __version__
from guerdon.errors import GuerdonError
from guerdon.monitor import views
from guerdon.monitor.live.listing import COLUMNS, STATUSES, Query, listed
from guerdon.monitor.live.store import RunRow, RunStore, digest
from guerdon.monitor.microscope import Sort, microscope_page
from guerdon.monitor.progress import duration

STATIC = Path(__file__).parent / "static"
# Runs that one picture can tell apart: five colours by three kinds of dashes, of which the last are hard to follow.
COMPARED = 8
# Parts of pages that are kept: several tabs that follow one run cost one reading of its files.
KEPT = 64
GROUPS = 3
SORTS = {"spread": "largest spread first", "best": "best first", "worst": "worst first", "row": "as sampled"}
VIEWS = {"overview": "Overview", "rollouts": "Rollouts"}
# The parts of a run's page by view; each has a version that changes with its files.
SHOWN = {"overview": ("header", "alarms", "faults", "curves", "recipe"), "rollouts": ("microscope",)}


@dataclass(frozen=True)
class Look:
    """Where the microscope stands: a saved step (the last by default), the first group shown, and their order."""

    step: int | None = None
    first: int = 0
    sort: Sort = "spread"


class Pages:
    """Makes the pages of one folder of runs.

    Args:
        store: the runs.
    """

    def __init__(self, store: RunStore) -> None:
        self.store = store
        self._parts: OrderedDict[tuple[Any, ...], Markup] = OrderedDict()
        self._lock = threading.Lock()

    @cached_property
    def static(self) -> dict[str, tuple[str, bytes]]:
        """Media type and content of every file that a page may load, by name."""
        files = {"theme.css": ("text/css", views.stylesheet().encode())}
        for name, kind in (("view.css", "text/css"), ("view.js", "text/javascript")):
            files[name] = (kind, (STATIC / name).read_bytes())
        return files

    def _asset(self, name: str) -> str:
        """Address of a file that changes with its content, so that it may be kept for long."""
        return f"/static/{name}?v={digest(self.static[name][1])}"

    def _page(self, template: str, **values: Any) -> str:
        shared = {
            "version": __version__,
            "asset": self._asset,
            "runs_dir": self.store.only or self.store.root.name,
            "duration": duration,
            "moment": lambda seconds: time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds)),
        }
        return views.visible(views.environment().get_template(f"live/{template}").render(**shared, **values))

    def runs(self, query: Query) -> str:
        """The list of runs."""
        rows = self.store.rows().values()
        shared = {"columns": COLUMNS, "statuses": STATUSES, "most": COMPARED, "version_of": list_version(rows)}
        return self._page("runs.html.j2", page=listed(rows, query), query=query, **shared)

    def rows(self, rows: Sequence[RunRow]) -> str:
        """Some rows of the list, for a page that shows them already."""
        return self._page("rows.html.j2", rows=rows)

    def message(self, title: str, text: str) -> str:
        """A page that says why there is nothing else."""
        return self._page("message.html.j2", title=title, text=text)

    # A run ------------------------------------------------------------------------------------------------

    def run(self, row: RunRow, view: str, look: Look) -> str:
        """One view of a run."""
        parts = {part: self.part(row, part, look) for part in SHOWN[view]}
        standing = self.part(row, "standing")
        return self._page("run.html.j2", run=row, view=view, views=VIEWS, parts=parts, standing=standing)

    def part(self, row: RunRow, part: str, look: Look | None = None) -> Markup:
        """One part of a run's page; where its files can't be read, the reason stands in its place."""
        if part == "standing":
            return Markup(self._page("standing.html.j2", run=row).strip())
        look = look or Look()
        key = (row.name, part, row.parts[part], look)

        def make() -> Markup:
            folder = self.store.folder(row.name)
            if part == "microscope":
                return self._microscope(row, folder, look)
            if part == "header":
                return views.header(folder, standing=False)  # which stands in the page's top bar
            return getattr(views, part)(folder)

        return self._kept(key, make)

    def _microscope(self, row: RunRow, folder: Any, look: Look) -> Markup:
        page = microscope_page(folder, step=look.step, first=look.first, count=GROUPS, sort=look.sort)
        shown = views.rollouts(page)
        return Markup(self._page("microscope.html.j2", run=row, page=page, shown=shown, sorts=SORTS, count=GROUPS))

    # Several runs -----------------------------------------------------------------------------------------

    def comparison(self, rows: Sequence[RunRow]) -> str:
        """Several runs side by side."""
        return self._page("compare.html.j2", rows=rows, shown=self.compared(rows), version_of=comparison_version(rows))

    def compared(self, rows: Sequence[RunRow]) -> Markup:
        """The comparison alone."""

        def make() -> Markup:
            return views.comparison([self.store.folder(row.name) for row in rows])

        return self._kept(("compare", *(row.name for row in rows), comparison_version(rows)), make)

    def _kept(self, key: tuple[Any, ...], make: Callable[[], Markup]) -> Markup:
        """What was made under this key, or make it; what fails is not kept."""
        with self._lock:
            if key in self._parts:
                self._parts.move_to_end(key)
                return self._parts[key]
        try:
            made = make().strip()  # as a browser reads it alone, so that it can be told what differs
        except GuerdonError as error:
            return Markup(self._page("broken.html.j2", reason=str(error)).strip())
        except Exception as error:  # a file that someone writes or damages must not take the page with it
            logging.getLogger(__name__).exception("cannot show %s", key[:2])
            return Markup(self._page("broken.html.j2", reason=f"{type(error).__name__}: {error}").strip())
        with self._lock:
            self._parts[key] = made
            while len(self._parts) > KEPT:
                self._parts.popitem(last=False)
        return made


def comparison_version(rows: Sequence[RunRow]) -> str:
    """Changes whenever one of the runs does."""
    return digest(*(row.version for row in rows))


def list_version(rows: Iterable[RunRow]) -> str:
    """Changes when a run appears or goes."""
    return digest(*sorted(row.name for row in rows))
