"""Verifiers of SQL: by what a query gives on a SQLite database, and by the tables and columns that it names."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from guerdon.errors import RewardError
from guerdon.rewards.extract import fenced_blocks, needed
from guerdon.rewards.forms import Calls, Score, reward
from guerdon.rewards.sql_compare import Comparison, Outcome, Source, compare
from guerdon.rewards.workers import WorkerPool, pack

Positive = Annotated[float, Field(gt=0)]
Rows = Annotated[int, Field(ge=1)]
Tolerance = Annotated[float, Field(ge=0)]

LONGEST = 10_000  # characters of a query
_MEMORY_MB = 512  # of the process that runs queries, beyond what it holds at first
_GRACE = 5.0  # seconds beyond the limits of both queries after which the process is killed


@reward("sql_execution")
def sql_execution(
    text: str,
    answer: Any,
    metadata: Any = None,
    *,
    database: str | None = None,
    ordered: Literal["auto", "always", "never"] = "auto",
    rel_tol: Tolerance = 1e-9,
    abs_tol: Tolerance = 1e-12,
    wall_time: Positive = 5.0,
    max_rows: Rows = 10_000,
    rows: Literal["multiset", "set"] = "multiset",
) -> Score:
    """Give 1 where a query gives the rows of the reference query on a SQLite database.

    Rows are compared as a multiset, so duplicates count and order does not, unless the reference query orders its
    result; then the order counts, also of rows that it leaves open. Columns are compared by position, whatever their
    names. NULL equals NULL alone, text and blobs are compared exactly, integers exactly, and numbers of which one is
    a float within the tolerances; text is never a number. Where the reference gives no row, any query without rows
    and with as many columns is right, so such problems teach little.

    The database is opened read-only in a process of its own, under an authorizer that allows nothing but reading and
    functions (no ATTACH, PRAGMA, writing, loading of extensions), with limits of time, memory (512 MB on Linux), rows
    and the length of values. Constants (``SELECT 42``) are queries too: ``sql_schema_linking`` sees those.

    Args:
        text: what the policy wrote: the query is its last block fenced as SQL or without a language, else all of it.
        answer: the reference query.
        metadata: what the task knows of the problem.
        database: path of the database, in which ``{key}`` stands for that key of the metadata, as in
            ``spider/{db_id}/{db_id}.sqlite``. Without it, the metadata has the path as ``database``, or a script that
            makes an empty database into the wanted one as ``script``.
        ordered: whether the order of rows counts; ``auto`` where the reference query ends in ORDER BY.
        rel_tol, abs_tol: floats may differ by this share of the larger one, and by this.
        wall_time: seconds for each of the two queries.
        max_rows: rows that the reference may give; under ``rows: set`` also those of the query.
        rows: under ``set`` neither duplicates nor order count, whatever ``ordered`` says.

    Returns:
        1.0 or 0.0; where it is 0, ``detail`` says under ``why``: no query, the database's error, the limit that was
        exceeded, or how the results differ.

    Raises:
        RewardError: when the reference is no query that works within the limits, or there is no database.
    """
    settings = Comparison(ordered, rel_tol, abs_tol, wall_time, max_rows, rows)
    outcome = query_outcome(
        "sql_execution", text, reference_query("sql_execution", answer), metadata, database, settings
    )
    return Score(1.0) if outcome.kind == "equal" else _wrong(outcome.why)


def query_outcome(
    name: str, text: str, reference: str | None, metadata: Any, database: str | None, settings: Comparison
) -> Outcome:
    """What came of the query in a text, beside the reference query or, without one, by itself.

    Args:
        name: the reward that asks.
        text, metadata, database: as in ``sql_execution``.
        reference: the reference query.
        settings: how results are compared.

    Raises:
        RewardError: when the reference is no query that works within the limits, or there is no database.
    """
    limit = 2 * settings.wall_time + _GRACE
    arguments: dict[str, Any] = {"source": _source(name, database, metadata), "settings": settings}
    query = sql_query(text)
    if not query or len(query) > LONGEST:
        return Outcome(
            "fails", "no query in the text" if not query else f"the query is longer than {LONGEST} characters"
        )
    reply = _pool.submit({**arguments, "reference": reference, "query": query}, limit).result()
    if reply.kind in ("timeout", "memory", "killed"):
        ended, known = reply, reference or "SELECT 1"
        reply = _pool.submit({**arguments, "reference": reference, "query": known}, limit).result()
        if reply.kind is None:  # the reference works, so the query is to blame
            return Outcome("fails", f"the query ended its process: {ended.kind}, {ended.message}")
    if reply.kind is not None:
        shown = "" if reference is None else f"; reference query: {reference:.200}"
        raise RewardError(f"reward '{name}': {reply.message}{shown}")
    return Outcome(*reply.result)


def reference_query(name: str, answer: Any) -> str:
    """The reference query that a reward is given as the answer.

    Raises:
        RewardError: when it is no text, or empty.
    """
    reference = answer.strip() if isinstance(answer, str) else ""
    if not reference:
        raise RewardError(f"reward '{name}': the reference query is {answer!r:.60}, want SQL; fix the answers")
    return reference


def _wrong(why: str) -> Score:
    return Score(0.0, detail={"why": why})


def sql_query(text: str) -> str:
    """The query in a text: its last block fenced as SQL or without a language, else, where nothing is fenced, all."""
    blocks = fenced_blocks(text)
    if not blocks:
        return text.strip()
    marked = [content for language, content in blocks if language in ("sql", "sqlite")]
    return (marked or [content for language, content in blocks if not language] or [""])[-1].strip()


def _source(name: str, database: str | None, metadata: Any) -> Source:
    """Where the problem's database is, or how it is made."""
    known = metadata if isinstance(metadata, Mapping) else {}
    if database is None and known.get("database") is None:
        if isinstance(script := known.get("script"), str):
            return Source(script=script)
        raise RewardError(
            f"reward '{name}': there is no database; give its path as option 'database' or in the problem's "
            "metadata under 'database', or there a script that makes it under 'script'"
        )
    try:
        path = Path(str(known["database"]) if database is None else database.format_map(known))
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        raise RewardError(
            f"reward '{name}': database {database!r} cannot be filled from the problem's metadata "
            f"({type(error).__name__}: {error}), which has {', '.join(sorted(map(str, known))) or 'nothing'}"
        ) from None
    if not path.is_file():
        raise RewardError(f"reward '{name}': no database at '{path}'; correct 'database'")
    return Source(path=str(path.resolve()))


_pool = WorkerPool(pack(compare, {}), Calls(workers=1, memory_mb=_MEMORY_MB if sys.platform == "linux" else None))


@reward("sql_schema_linking")
class SqlSchemaLinking:
    """Score how far a query names the tables and columns of the reference query.

    f1: 2 |A ∩ B| / (|A| + |B|)   jaccard: |A ∩ B| / |A ∪ B|   recall: |A ∩ B| / |B|

    A and B are the tables and columns of the query and of the reference, without case. A query that names every column
    there is has full recall. Aliases are resolved, tables that the query
    itself defines (WITH, subqueries) and their columns are left out, columns count by their own names alone, so ``t.a``
    is ``a``, and ``*`` is none. The query is parsed and never run.

    Args:
        measure: which of the three.
        dialect: how sqlglot reads the queries: ``sqlite``, ``postgres``, ``mysql``, ``bigquery``, ...

    Raises:
        RecipeError: when the sqlglot library is missing.
        RewardError: when it does not know the dialect.

    Source: sqlglot, https://github.com/tobymao/sqlglot; recall is the form of Pourreza et al. 2025.
    """

    def __init__(self, *, measure: Literal["f1", "jaccard", "recall"] = "f1", dialect: str = "sqlite") -> None:
        self._library = needed("sqlglot", "sql_schema_linking", "sql")
        self._scopes = needed("sqlglot.optimizer.scope", "sql_schema_linking", "sql")
        self._measure, self._dialect = measure, dialect
        try:
            self._library.Dialect.get_or_raise(dialect)
        except ValueError as error:
            raise RewardError(f"reward 'sql_schema_linking': sqlglot knows no dialect '{dialect}' ({error})") from None

    def __call__(self, text: str, answer: Any) -> Score:
        """Score one text.

        Args:
            text: what the policy wrote; where its query stands is as in ``sql_execution``.
            answer: the reference query.

        Returns:
            The value in [0,1]; its detail holds what is ``missing`` and what is ``extra``, or ``why`` it is no query.

        Raises:
            RewardError: when the reference cannot be parsed, or names neither table nor column.
        """
        try:
            wanted = self.links(answer if isinstance(answer, str) else "")
        except ValueError as error:
            raise RewardError(
                f"reward 'sql_schema_linking': the reference query is {answer!r:.100}: {error}; fix the task's answers"
            ) from None
        if not wanted:
            raise RewardError(f"reward 'sql_schema_linking': {answer!r:.100} names no table and no column")
        try:
            seen = self.links(sql_query(text))
        except ValueError as error:
            return _wrong(str(error))
        both = len(seen & wanted)
        size = {"f1": (len(seen) + len(wanted)) / 2, "jaccard": len(seen | wanted), "recall": len(wanted)}
        value = both / size[self._measure]
        detail = {"missing": sorted(wanted - seen), "extra": sorted(seen - wanted)[:20]}
        return Score(value, detail=detail if seen != wanted else None)

    def links(self, query: str) -> frozenset[str]:
        """Tables (``table NAME``) and columns (``column NAME``) of a query.

        Raises:
            ValueError: when it is no single query that can be parsed.
        """
        if not query or len(query) > LONGEST:
            raise ValueError("no query in the text" if not query else f"longer than {LONGEST} characters")
        try:
            parsed = [one for one in self._library.parse(query, dialect=self._dialect) if one is not None]
            single = len(parsed) == 1 and isinstance(parsed[0], self._library.exp.Query)
            scopes = self._scopes.traverse_scope(parsed[0]) if single else []
            found = frozenset(link for scope in scopes for link in self._links_of(scope))
        except RecursionError:
            raise ValueError("nested too deeply") from None
        except Exception as error:  # the parser has errors of its own, and trips over some texts in other ways
            problem = str(error).partition("\n")[0]
            raise ValueError(f"cannot be parsed: {type(error).__name__}: {problem:.150}") from None
        if not single:
            raise ValueError("want one query and nothing else")
        return found

    def _links_of(self, scope: Any) -> set[str]:
        """What one SELECT of a query names."""
        exp = self._library.exp
        read = {name.casefold(): source for name, (_, source) in scope.selected_sources.items()}
        tables = {name for name, source in read.items() if isinstance(source, exp.Table)}
        made = [source for name, source in read.items() if name not in tables]
        derived = {column.casefold() for source in made for column in source.expression.named_selects}
        own = {name.casefold() for name in scope.cte_sources}
        found = {f"table {table.name.casefold()}" for table in scope.tables if table.name.casefold() not in own}
        for column in scope.columns:
            name = column.name.casefold()
            outside = column.table.casefold() in tables if column.table else name not in derived
            if outside and name != "*":
                found.add(f"column {name}")
        return found
