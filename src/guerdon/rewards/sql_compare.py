"""Runs queries on a SQLite database that none can change, and compares their rows; for a process of its own."""

from __future__ import annotations

import functools
import math
import os
import re
import sqlite3
import time
import urllib.parse
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any, Literal, NamedTuple

from guerdon.errors import RewardError

Value = int | float | str | bytes | None
Row = tuple[Value, ...]

_ALLOWED = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
_LIMITS = {
    sqlite3.SQLITE_LIMIT_LENGTH: 1_000_000,
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: 100_000,
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 200,
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 50,
    sqlite3.SQLITE_LIMIT_COLUMN: 500,
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
    sqlite3.SQLITE_LIMIT_WORKER_THREADS: 0,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 200,
}
_PULSE = 2000  # instructions of SQLite's machine between looks at the clock
_TOKEN = re.compile(
    r"""--[^\n]*|/\*.*?(?:\*/|\Z)|'(?:[^']|'')*'?|"(?:[^"]|"")*"?|`[^`]*`?|\[[^\]]*\]?|(?P<word>\w+)|(?P<sign>[()])|.""",
    re.DOTALL,
)


class Source(NamedTuple):
    """A database: the path of its file, or a script that makes it."""

    path: str | None = None
    script: str | None = None


class Comparison(NamedTuple):
    """How two results are compared, and under which limits they are made; see ``sql_execution``."""

    ordered: Literal["auto", "always", "never"] = "auto"
    rel_tol: float = 1e-9
    abs_tol: float = 1e-12
    wall_time: float = 5.0
    max_rows: int = 10_000
    rows: Literal["multiset", "set"] = "multiset"


class Outcome(NamedTuple):
    """What came of a query beside the reference, and why, where it is not ``equal``."""

    kind: Literal["equal", "differs", "fails"]
    why: str = ""


class Result(NamedTuple):
    """Rows of a query, and how many columns it has."""

    columns: int
    rows: list[Row]


class QueryFailed(Exception):
    """A query that gave no result, and why."""


def compare(source: Source, reference: str | None, query: str, settings: Comparison) -> Outcome:
    """Compare the result of a query with that of the reference query.

    Without a reference, a query is ``equal`` if it gives its first row, or none, without an error.

    Raises:
        RewardError: when the database cannot be made or read, or the reference query fails.
    """
    source, settings = Source(*source), Comparison(*settings)
    wanted, most = None, 1
    if reference is not None:
        wanted = _reference_result(source, _stamp(source), reference, settings.wall_time, settings.max_rows)
        # One row more than the reference shows that there are too many, unless some may be the same.
        most = (settings.max_rows if settings.rows == "set" else len(wanted.rows)) + 1
    try:
        with closing(_open(source)) as database:
            seen = run_query(database, query, settings.wall_time, most)
    except QueryFailed as error:
        return Outcome("fails", str(error))
    if wanted is None or reference is None:
        return Outcome("equal")
    if settings.rows == "set" and len(seen.rows) == most:
        return Outcome("differs", f"more than {settings.max_rows} rows")
    ordered = settings.ordered == "always" or (settings.ordered == "auto" and orders(reference))
    tolerances = {"rel_tol": settings.rel_tol, "abs_tol": settings.abs_tol}
    why = difference(seen, wanted, ordered=ordered, distinct=settings.rows == "set", **tolerances)
    return Outcome("differs", why) if why else Outcome("equal")


@functools.lru_cache(maxsize=16)  # all samples of a group have the same reference
def _reference_result(source: Source, stamp: Any, reference: str, wall_time: float, most: int) -> Result:
    try:
        with closing(_open(source)) as database:
            result = run_query(database, reference, wall_time, most + 1)
    except QueryFailed as error:
        raise RewardError(f"the reference query fails: {error}; fix the task's answers, or raise 'wall_time'") from None
    if len(result.rows) > most:
        raise RewardError(f"the reference query gives more than {most} rows; raise 'max_rows'")
    return result


def _stamp(source: Source) -> Any:
    """What changes when a database file does."""
    if source.path is None:
        return None
    status = os.stat(source.path)
    return status.st_mtime_ns, status.st_size


def _open(source: Source) -> sqlite3.Connection:
    """The database, ready for a query that nobody trusts."""
    path = ":memory:" if source.path is None else f"file:{urllib.parse.quote(source.path)}?mode=ro"
    database = None
    try:
        database = sqlite3.connect(path, uri=True, isolation_level=None)
        if source.script is not None:
            database.executescript(source.script)
        database.execute("PRAGMA query_only = ON")
        database.execute("PRAGMA temp_store = MEMORY")
        database.execute("SELECT COUNT(*) FROM sqlite_master")
    except (sqlite3.Error, sqlite3.Warning, ValueError) as error:
        if database is not None:
            database.close()
        what = "the problem's script" if source.path is None else f"'{source.path}'"
        raise RewardError(f"{what} makes no SQLite database: {error}") from None
    database.text_factory = functools.partial(str, encoding="utf-8", errors="replace")
    for category, limit in _LIMITS.items():
        database.setlimit(category, limit)
    database.set_authorizer(_authorise)
    return database


def _authorise(action: int, first: str | None, second: str | None, *_: str | None) -> int:
    if action not in _ALLOWED or (action == sqlite3.SQLITE_FUNCTION and (second or "").lower() == "load_extension"):
        return sqlite3.SQLITE_DENY
    return sqlite3.SQLITE_OK


def run_query(database: sqlite3.Connection, query: str, wall_time: float, most: int) -> Result:
    """Run one query and fetch at most so many rows.

    Raises:
        QueryFailed: when it is none, is refused, fails, or takes too long.
        MemoryError: when it needs more memory than there is.
    """
    deadline = time.monotonic() + wall_time
    database.set_progress_handler(lambda: time.monotonic() > deadline, _PULSE)
    try:
        cursor = database.execute(query)
        rows = cursor.fetchmany(most)
    except (sqlite3.Error, sqlite3.Warning, ValueError) as error:
        late = "interrupted" in str(error) and time.monotonic() > deadline
        raise QueryFailed(f"no result within {wall_time:g} s" if late else f"SQLite refuses it: {error}") from None
    if cursor.description is None:
        raise QueryFailed("it is no query")
    return Result(len(cursor.description), rows)


def orders(query: str) -> bool:
    """Whether a query orders its result: ORDER BY outside of all brackets, comments and quotes."""
    depth, previous = 0, ""
    for token in _TOKEN.finditer(query):
        depth += {"(": 1, ")": -1}.get(token["sign"] or "", 0)
        word = (token["word"] or "").upper()
        if depth == 0 and previous == "ORDER" and word == "BY":
            return True
        previous = word or (previous if token[0].isspace() or token[0][:2] in ("--", "/*") else "")
    return False


def difference(
    seen: Result, wanted: Result, *, ordered: bool, rel_tol: float, abs_tol: float, distinct: bool = False
) -> str:
    """Say how two results differ: the empty text if they do not.

    Args:
        seen, wanted: the results.
        ordered: whether the order of rows counts.
        rel_tol, abs_tol: as in ``sql_execution``.
        distinct: compare sets: neither order nor duplicates count.
    """
    if seen.columns != wanted.columns:
        return f"{seen.columns} columns, want {wanted.columns}"
    if not distinct and len(seen.rows) != len(wanted.rows):
        more = "more than " if len(seen.rows) > len(wanted.rows) else ""
        return f"{more}{min(len(seen.rows), len(wanted.rows))} rows, want {len(wanted.rows)}"
    ours, theirs = _alike(seen.rows, wanted.rows, rel_tol, abs_tol)
    if distinct:
        missing, extra = len(set(theirs) - set(ours)), len(set(ours) - set(theirs))
        return f"{missing} different rows are missing and {extra} not wanted" if missing or extra else ""
    if ordered and ours != theirs:
        place = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
        same = "the rows are right and their order is not" if Counter(ours) == Counter(theirs) else "the rows differ"
        return f"{same}: row {place} is {seen.rows[place]!r:.80}, want {wanted.rows[place]!r:.80}"
    if not ordered and (left := Counter(ours) - Counter(theirs)):
        place = ours.index(next(iter(left)))
        return f"{left.total()} of {len(ours)} rows are not wanted, such as {seen.rows[place]!r:.80}"
    return ""


def _alike(
    seen: Sequence[Row], wanted: Sequence[Row], rel_tol: float, abs_tol: float
) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    """Both results with numbers that are equal within the tolerances made the same, column by column."""
    columns = zip(*seen, *wanted, strict=True)
    marked = zip(*(_marked(column, rel_tol, abs_tol) for column in columns), strict=True)
    rows = list(marked)
    return rows[: len(seen)], rows[len(seen) :]


def _marked(column: Sequence[Value], rel_tol: float, abs_tol: float) -> Iterator[tuple[str, Any]]:
    """Type and value of each entry; a number's value is the least of the run of close numbers that it belongs to."""
    numbers = sorted({value for value in column if isinstance(value, int | float)})
    least: dict[int | float, int | float] = {}
    for before, value in zip([None, *numbers], numbers, strict=False):
        close = before is not None and _close(before, value, rel_tol, abs_tol)
        least[value] = least[before] if close and before is not None else value
    for value in column:
        yield ("number", least[value]) if isinstance(value, int | float) else (type(value).__name__, value)


def _close(first: int | float, second: int | float, rel_tol: float, abs_tol: float) -> bool:
    if isinstance(first, int) and isinstance(second, int):
        return first == second
    return math.isclose(first, second, rel_tol=rel_tol, abs_tol=abs_tol)
