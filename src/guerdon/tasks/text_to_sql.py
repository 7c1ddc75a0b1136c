"""The task of text to SQL: some five hundred questions about a small database of music, each with its query."""

from __future__ import annotations

import functools
import itertools
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import ClassVar, NamedTuple

from guerdon.cache import cache_folder
from guerdon.errors import TaskError
from guerdon.registry import register
from guerdon.rewards.sql import sql_execution
from guerdon.seeding import derive, numpy_generator
from guerdon.tasks.base import Kind, Problem, Task

ROWS = 24  # of each table: enough to tell most queries apart by their results


class Table(NamedTuple):
    """A table of the database, and how questions speak of it.

    Attributes:
        name, plural: in SQL and in questions.
        label: column that names a row.
        category, said: a column of few values, and the words before a value in a question.
        values: what stands there.
        numbers: two columns of whole numbers, with the lowest and highest.
    """

    name: str
    plural: str
    label: str
    category: str
    said: str
    values: tuple[str, ...]
    numbers: dict[str, tuple[int, int]]


TABLES = (
    Table(
        "singer",
        "singers",
        "name",
        "country",
        "from",
        ("France", "Japan", "Chile", "Kenya"),
        {"age": (20, 70), "songs": (10, 90)},
    ),
    Table(
        "album",
        "albums",
        "title",
        "genre",
        "of",
        ("jazz", "rock", "folk", "pop"),
        {"year": (1960, 2020), "sales": (100, 900)},
    ),
    Table(
        "stadium",
        "stadiums",
        "name",
        "city",
        "in",
        ("Rome", "Oslo", "Lima", "Cairo"),
        {"seats": (200, 990), "rooms": (10, 70)},
    ),
)
COMPARISONS = {"over": ">", "under": "<"}
AGGREGATES = {"average": "AVG", "highest": "MAX", "lowest": "MIN", "total": "SUM"}
ORDERS = {"highest": "DESC", "lowest": "ASC"}
JOIN = "album JOIN singer ON album.singer_id = singer.id"


@register("task", "text_to_sql")
class TextToSQL(Task):
    """Answer a question with a query on a SQLite database of singers, albums and stadiums.

    The rows are drawn from ``seed``; questions and reference queries are filled-in templates with filters, counts,
    aggregates, groups, the first few, and a join. A part of the questions is held out; a problem's ``task_id`` is a
    hash of its question. The database is a file in ``$GUERDON_CACHE`` or ``~/.cache/guerdon``, made where missing; a
    problem's metadata holds its path as ``database``, which is where the rewards ``sql_execution``, ``sql_syntax`` and
    ``sql_judge`` look.

    The scorer is ``sql_execution`` on sets of rows.

    Args:
        seed: which rows there are, and which questions are held out.
        eval_size: questions held out.
        show_schema: put the statements that make the tables before each question, for a model that does not know them.

    Raises:
        TaskError: when nothing is left to train on, or the database cannot be written.
    """

    kind: ClassVar[Kind] = "language"
    supplies = frozenset({"answer"})

    def __init__(self, *, seed: int = 0, eval_size: int = 100, show_schema: bool = False) -> None:
        self._script = database_script(seed)
        self.database = _database(self._script)
        made = list(self._problems(show_schema))
        if not 0 <= eval_size < len(made):
            raise TaskError(
                f"task 'text_to_sql': eval_size is {eval_size} and there are {len(made)} questions; want fewer held out"
            )
        order = sorted(made, key=lambda problem: derive(seed, "held out", problem.task_id))
        self._held_out, self._train = order[:eval_size], order[eval_size:]
        self.scorer = functools.partial(sql_execution, rows="set")

    def train_batch(self, n: int, seed: int) -> list[Problem]:
        """Draw ``n`` questions that are not held out, without replacement; a pure function of ``seed``.

        Raises:
            TaskError: when there are fewer than ``n``.
        """
        if n > len(self._train):
            raise TaskError(
                f"task 'text_to_sql' has {len(self._train)} training questions, want a batch of {n}; lower the batch"
            )
        chosen = numpy_generator(seed, "text_to_sql").choice(len(self._train), size=n, replace=False)
        return [self._train[i] for i in chosen]

    def eval_problems(self, n: int) -> list[Problem]:
        """The first ``n`` questions that are held out, always the same.

        Raises:
            TaskError: when fewer than ``n`` are held out.
        """
        if n > len(self._held_out):
            raise TaskError(f"task 'text_to_sql' holds out {len(self._held_out)} questions, want {n}; raise eval_size")
        return self._held_out[:n]

    def corpus(self) -> Iterable[str]:
        """All training questions and queries; of the held-out ones only the set of characters."""
        yield "".join(sorted(set("".join(p.prompt + p.answer for p in self._held_out))))
        for problem in self._train:
            yield problem.prompt
            yield problem.answer

    def _problems(self, show_schema: bool) -> Iterator[Problem]:
        """Every question whose query gives a row, in the order of the templates."""
        schema = "".join(f"{statement};\n" for statement in _schema()) if show_schema else ""
        with closing(sqlite3.connect(f"file:{self.database}?mode=ro", uri=True)) as connection:
            for question, query in questions():
                if connection.execute(query).fetchone() is not None:
                    known = {"database": str(self.database), "question": question}
                    yield Problem(derive(0, question), schema + question, answer=query, metadata=known)


def questions() -> Iterator[tuple[str, str]]:
    """Every question with its query, whatever the rows are; all questions differ."""
    for table in TABLES:
        yield from _of_one_table(table)
    singer, album = TABLES[0], TABLES[1]
    for country in singer.values:
        yield f"titles of albums by singers from {country}", f"SELECT title FROM {JOIN} WHERE country = '{country}'"
        for year in _steps(album.numbers["year"]):
            yield (
                f"titles of albums by singers from {country} with year over {year}",
                f"SELECT title FROM {JOIN} WHERE country = '{country}' AND year > {year}",
            )
    for genre in album.values:
        yield f"names of singers with albums of {genre}", f"SELECT singer.name FROM {JOIN} WHERE genre = '{genre}'"


def _of_one_table(table: Table) -> Iterator[tuple[str, str]]:
    name, plural, label, category, said = table[:5]
    for number, span in table.numbers.items():
        for (word, sign), value in itertools.product(COMPARISONS.items(), _steps(span)):
            filtered = f"FROM {name} WHERE {number} {sign} {value}"
            yield f"{label}s of {plural} with {number} {word} {value}", f"SELECT {label} {filtered}"
            yield f"how many {plural} with {number} {word} {value}", f"SELECT COUNT(*) {filtered}"
        for (word, function), value in itertools.product(AGGREGATES.items(), table.values):
            filtered = f"FROM {name} WHERE {category} = '{value}'"
            yield f"{word} {number} of {plural} {said} {value}", f"SELECT {function}({number}) {filtered}"
        for (word, sign), value in itertools.product(COMPARISONS.items(), table.values):
            for bound in _steps(span)[2::3]:
                condition = f"{category} = '{value}' AND {number} {sign} {bound}"
                yield (
                    f"{label}s of {plural} {said} {value} with {number} {word} {bound}",
                    f"SELECT {label} FROM {name} WHERE {condition}",
                )
        for (word, direction), count in itertools.product(ORDERS.items(), range(1, 6)):
            ordered = f"FROM {name} ORDER BY {number} {direction} LIMIT {count}"
            yield f"{label}s of the {count} {plural} with the {word} {number}", f"SELECT {label} {ordered}"
        for word, function in AGGREGATES.items():
            yield (
                f"{word} {number} of {plural} for each {category}",
                f"SELECT {category}, {function}({number}) FROM {name} GROUP BY {category}",
            )
    yield (
        f"how many {plural} for each {category}",
        f"SELECT {category}, COUNT(*) FROM {name} GROUP BY {category}",
    )


def _steps(span: tuple[int, int]) -> list[int]:
    """Eight numbers inside a range, evenly spaced."""
    low, high = span
    return [low + (high - low) * i // 9 for i in range(1, 9)]


def database_script(seed: int) -> str:
    """The SQL that makes the database: every column of numbers holds each at most once."""
    statements = _schema()
    generator = numpy_generator(seed, "text_to_sql", "rows")
    for table in TABLES:
        numbers = [
            generator.choice(range(low, high + 1), size=ROWS, replace=False).tolist()
            for low, high in table.numbers.values()
        ]
        categories = generator.permutation([table.values[i % len(table.values)] for i in range(ROWS)]).tolist()
        singers = generator.integers(1, ROWS + 1, size=ROWS).tolist()
        for i in range(ROWS):
            link = [singers[i]] if table.name == "album" else []
            row = [i + 1, *link, f"{table.name} {i + 1}", categories[i], *(column[i] for column in numbers)]
            statements.append(f"INSERT INTO {table.name} VALUES ({', '.join(map(repr, row))})")
    return "".join(f"{statement};\n" for statement in statements)


def _schema() -> list[str]:
    """The statements that make the tables."""
    statements = []
    for table in TABLES:
        link = ["singer_id INTEGER"] if table.name == "album" else []
        texts = [f"{column} TEXT" for column in (table.label, table.category)]
        columns = ["id INTEGER", *link, *texts, *(f"{number} INTEGER" for number in table.numbers)]
        statements.append(f"CREATE TABLE {table.name} ({', '.join(columns)})")
    return statements


def _database(script: str) -> Path:
    """The file that holds the database of a script; written beside its place and moved there, so never half made."""
    folder = cache_folder().absolute()
    path = folder / f"text-to-sql-{derive(0, script):016x}.sqlite"
    if path.is_file():
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            partial = Path(scratch) / path.name
            with closing(sqlite3.connect(partial)) as connection:
                connection.executescript(script)
            partial.replace(path)
    except (OSError, sqlite3.Error) as error:
        raise TaskError(
            f"task 'text_to_sql' cannot write its database '{path}' ({error}); name a folder in GUERDON_CACHE"
        ) from None
    return path
