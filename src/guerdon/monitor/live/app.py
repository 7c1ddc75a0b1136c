"""The server's routes: the list of runs, a run, a comparison, the parts of their pages, and what changes."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import wraps
from typing import Any, get_args

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from guerdon.monitor.live.listing import BadQuery, Query, whole_number
from guerdon.monitor.live.pages import COMPARED, SHOWN, Look, Pages, comparison_version, list_version
from guerdon.monitor.live.security import Guard
from guerdon.monitor.live.store import PARTS, NoSuchRun, RunRow, RunStore
from guerdon.monitor.live.watch import Rows, Versions, Watcher, events
from guerdon.monitor.microscope import Sort

# Names in one address: a page of the list asks for its changed rows at once.
NAMED = 200
KEEP = "private, max-age=31536000, immutable"
Answer = Callable[[Request], Response]


class LiveApp:
    """What the routes share.

    Attributes:
        watcher: closed by the server when it stops, so that open event streams end.
    """

    def __init__(self, runs_dir: str | os.PathLike[str]) -> None:
        self.store = RunStore(runs_dir)
        self.store.rows()  # the first look reads every run; the first page needn't wait for it
        self.pages = Pages(self.store)
        self.watcher = Watcher(self.store.rows)

    def routes(self) -> list[Route]:
        """Addresses and what answers them."""
        return [
            Route("/", self._answers(self.runs)),
            Route("/part/rows", self._answers(self.rows)),
            Route("/run/{name:path}/part/{part}", self._answers(self.part)),
            Route("/run/{name:path}", self._answers(self.run)),
            Route("/compare", self._answers(self.compare)),
            Route("/part/compare", self._answers(self.compare_part)),
            Route("/static/{file}", self._answers(self.static)),
            Route("/events", self._answers(self.events)),
        ]

    def _answers(self, make: Answer) -> Callable[[Request], Awaitable[Response]]:
        """A route that answers in a thread, for files are read, and says plainly what is wrong with a request."""

        @wraps(make)
        async def answer(request: Request) -> Response:
            try:
                return await run_in_threadpool(make, request)
            except NoSuchRun as error:
                return self.message(404, "No such run", str(error))
            except BadQuery as error:
                return self.message(400, "That address asks for something else", str(error))

        return answer

    def message(self, status: int, title: str, text: str) -> Response:
        """A page that says why there is nothing else."""
        return HTMLResponse(self.pages.message(title, text), status_code=status)

    # Answers ----------------------------------------------------------------------------------------------

    def runs(self, request: Request) -> Response:
        """The list of runs."""
        return HTMLResponse(self.pages.runs(Query.parse(request.query_params)))

    def rows(self, request: Request) -> Response:
        """Rows of the list that a page shows already; those of runs that are gone are left out."""
        rows = self.store.rows()
        return HTMLResponse(self.pages.rows([rows[name] for name in _names(request, NAMED) if name in rows]))

    def run(self, request: Request) -> Response:
        """One view of a run."""
        view = request.query_params.get("view", "overview")
        if view not in SHOWN:
            raise BadQuery(f"a run has the views {', '.join(SHOWN)}, not '{view}'")
        return HTMLResponse(self.pages.run(self.store.row(request.path_params["name"]), view, _look(request)))

    def part(self, request: Request) -> Response:
        """One part of a run's page."""
        part = request.path_params["part"]
        if part not in PARTS:
            raise BadQuery(f"a run's page has the parts {', '.join(PARTS)}, not '{part}'")
        return HTMLResponse(self.pages.part(self.store.row(request.path_params["name"]), part, _look(request)))

    def compare(self, request: Request) -> Response:
        """Several runs side by side."""
        return HTMLResponse(self.pages.comparison(self._compared(request)))

    def compare_part(self, request: Request) -> Response:
        """The comparison alone."""
        return HTMLResponse(self.pages.compared(self._compared(request)))

    def static(self, request: Request) -> Response:
        """A style sheet or script of the package."""
        file = self.pages.static.get(request.path_params["file"])
        if file is None:
            return self.message(404, "No such file", "The server has no file of that name.")
        kind, content = file
        return Response(content, media_type=kind, headers={"cache-control": KEEP})

    def events(self, request: Request) -> Response:
        """What changes: of the runs named in the address, or of the list."""
        names = _names(request, NAMED)
        compared = request.query_params.get("view") == "compare"

        def versions(rows: Rows) -> Versions:
            known = [rows[name] for name in names if name in rows]
            if compared:
                return {"comparison": comparison_version(known)}
            if names:
                return {part: version for row in known for part, version in row.parts.items()}
            return {"list": list_version(rows.values()), **{row.id: row.version for row in rows.values()}}

        kind = "text/event-stream"
        if request.method == "HEAD":  # which has no end to wait for
            return Response(media_type=kind)
        return StreamingResponse(events(self.watcher, versions), media_type=kind, headers={"x-accel-buffering": "no"})

    def _compared(self, request: Request) -> Sequence[RunRow]:
        names = list(dict.fromkeys(_names(request, COMPARED)))
        if len(names) < 2:
            raise BadQuery("choose two runs or more in the list, then compare them")
        return [self.store.row(name) for name in names]


def create_app(
    runs_dir: str | os.PathLike[str], *, token: str | None, hosts: Iterable[str] = (), loopback: bool = True
) -> tuple[ASGIApp, Watcher]:
    """The live page of the runs below a folder, as an ASGI app.

    Args:
        token: what a reader must know; None lets everyone read who can reach the server.
        hosts: names under which the server may be addressed, beside those of this machine's loopback.
        loopback: whether it listens on loopback alone.

    Returns:
        the app, and the watcher to close when its server stops, so that open event streams end.

    Raises:
        GuerdonError: when there is no such folder.
    """
    live = LiveApp(runs_dir)

    async def failed(request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException):
            return live.message(error.status_code, "Nothing is here", "The server has no page at this address.")
        return live.message(500, "This page cannot be made", f"{type(error).__name__}: {error}")

    app = Starlette(routes=live.routes(), exception_handlers={HTTPException: failed, Exception: failed})
    return Guard(app, token=token, hosts=hosts, loopback=loopback), live.watcher


def _names(request: Request, most: int) -> list[str]:
    names = request.query_params.getlist("run")
    if len(names) > most:
        raise BadQuery(f"{len(names)} runs are too many; name {most} at most")
    return names


def _look(request: Request) -> Look:
    params: Any = request.query_params
    sort = params.get("sort", "spread")
    if sort not in get_args(Sort):
        raise BadQuery(f"groups are sorted by {', '.join(get_args(Sort))}, not '{sort}'")
    step = whole_number(params, "step", default=0) if params.get("step") else None
    return Look(step, whole_number(params, "first", default=0), sort)
