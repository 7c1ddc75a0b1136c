"""The list of runs as it is asked for: filtered, sorted, and in pages."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlencode

from guerdon.errors import GuerdonError, nearest
from guerdon.monitor.live.store import RunRow

STATUSES = ("running", "finished", "stopped", "interrupted", "unfinished")
# Rows of a page: as many as are read at a glance while scrolling, and few enough to be drawn at once.
PAGE = 100


class BadQuery(GuerdonError):
    """An address that asks for something that there isn't."""


@dataclass(frozen=True)
class Column:
    """A column of the list.

    Attributes:
        key: its name in addresses and style sheets.
        label: its heading.
        value: what it is sorted by; None comes last either way.
        descending: whether the first click shows the largest first.
    """

    key: str
    label: str
    value: Callable[[RunRow], Any]
    descending: bool = True


COLUMNS = {
    column.key: column
    for column in (
        Column("name", "run", lambda row: row.name.casefold(), descending=False),
        Column("status", "status", lambda row: STATUSES.index(row.status), descending=False),
        Column("task", "task", lambda row: row.task, descending=False),
        Column("policy", "policy", lambda row: row.policy, descending=False),
        Column("credit", "credit", lambda row: row.credit, descending=False),
        Column("steps", "steps", lambda row: row.steps),
        Column("reward", "reward", lambda row: row.reward),
        Column("alarms", "alarms", lambda row: row.alarms),
        Column("seconds", "time", lambda row: row.seconds),
        Column("started", "begun", lambda row: row.started),
    )
}


@dataclass(frozen=True)
class Query:
    """What a reader asks of the list; its address holds all of it.

    Attributes:
        text: words that must all occur in a run's name, task, policy or credit.
        status: one of ``STATUSES``, or empty for all.
        sort: key of a column.
        page: counted from 1.
    """

    text: str = ""
    status: str = ""
    sort: str = "started"
    descending: bool = True
    page: int = 1

    @classmethod
    def parse(cls, params: Mapping[str, str]) -> Query:
        """Read an address.

        Raises:
            BadQuery: when it names a status, column or page that there isn't.
        """
        status, sort = params.get("status", ""), params.get("sort", "started")
        if status and status not in STATUSES:
            raise BadQuery(f"there is no status '{status}'{nearest(status, STATUSES)}")
        if sort not in COLUMNS:
            raise BadQuery(f"there is no column '{sort}'{nearest(sort, COLUMNS)}")
        order = params.get("order", "down" if COLUMNS[sort].descending else "up")
        if order not in ("up", "down"):
            raise BadQuery(f"order is 'up' or 'down', not '{order}'")
        page = whole_number(params, "page", default=1, least=1)
        return cls(params.get("q", "").strip(), status, sort, order == "down", page)

    def address(self, **changes: Any) -> str:
        """The address of the list with some things changed; a change of what is listed leads to the first page."""
        query = replace(self, **({"page": 1} | changes))
        order = "down" if query.descending else "up"
        usual = "down" if COLUMNS[query.sort].descending else "up"
        given = {
            "q": query.text,
            "status": query.status,
            "sort": query.sort if (query.sort, order) != ("started", "down") else "",
            "order": order if order != usual else "",
            "page": str(query.page) if query.page > 1 else "",
        }
        return "/?" + urlencode({key: value for key, value in given.items() if value})

    def sorted_by(self, column: Column) -> str:
        """The address of the list sorted by a column, the other way round if it already is."""
        descending = not self.descending if column.key == self.sort else column.descending
        return self.address(sort=column.key, descending=descending)


@dataclass(frozen=True)
class Page:
    """One page of the list.

    Attributes:
        found: how many runs the query finds, of ``total``.
        number, pages: which page this is, counted from 1, and how many there are.
    """

    rows: Sequence[RunRow]
    found: int
    total: int
    number: int
    pages: int


def listed(rows: Iterable[RunRow], query: Query) -> Page:
    """The page of runs that a query asks for; beyond the last page, the last one."""
    every = list(rows)
    words = query.text.casefold().split()
    found = [
        row
        for row in every
        if (not query.status or row.status == query.status) and all(word in _words(row) for word in words)
    ]
    value = COLUMNS[query.sort].value
    found.sort(key=lambda row: row.name)
    known = [row for row in found if not _missing(value(row))]
    known.sort(key=value, reverse=query.descending)
    ordered = known + [row for row in found if _missing(value(row))]
    pages = max(1, math.ceil(len(ordered) / PAGE))
    number = min(query.page, pages)
    return Page(ordered[(number - 1) * PAGE : number * PAGE], len(ordered), len(every), number, pages)


def whole_number(params: Mapping[str, str], key: str, *, default: int, least: int = 0) -> int:
    """A number in an address.

    Raises:
        BadQuery: when it is not a whole number, or smaller than ``least``.
    """
    given = params.get(key) or str(default)
    # Numbers of steps and rows have few digits; converting thousands of them would take time.
    number = int(given) if given.isascii() and given.isdecimal() and len(given) <= 12 else -1
    if number < least:
        raise BadQuery(f"{key} is a whole number from {least} on, not '{given}'")
    return number


def _words(row: RunRow) -> str:
    return f"{row.name} {row.task} {row.policy} {row.credit}".casefold()


def _missing(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))
