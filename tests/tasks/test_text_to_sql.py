import os
import re
import sqlite3
from contextlib import closing

import pytest

from guerdon.errors import TaskError
from guerdon.rewards.sql import SqlSchemaLinking
from guerdon.rewards.sql_partial import sql_syntax
from guerdon.tasks.text_to_sql import ROWS, TABLES, TextToSQL, database_script, questions


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GUERDON_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def everything(task):
    held_out = task.eval_problems(100)
    return held_out, task.train_batch(len(task._train), seed=0)


def test_there_are_some_five_hundred_questions_and_all_differ():
    asked = list(questions())
    assert len(asked) == 511
    assert len({question for question, _ in asked}) == len({query for _, query in asked}) == len(asked)
    held_out, train = everything(TextToSQL())
    assert 450 < len(held_out) + len(train) <= 511


def test_held_out_questions_are_never_trained_on():
    for seed in (0, 1):
        held_out, train = everything(TextToSQL(seed=seed))
        assert not {p.task_id for p in held_out} & {p.task_id for p in train}
        assert not {p.answer for p in held_out} & {p.answer for p in train}
        assert len({p.task_id for p in train}) == len(train)


def test_every_reference_query_runs_is_right_and_gives_a_row():
    task = TextToSQL()
    linking = SqlSchemaLinking()
    with closing(sqlite3.connect(task.database)) as connection:
        for problem in [*task.eval_problems(100), *task.train_batch(100, seed=1)]:
            assert connection.execute(problem.answer).fetchone() not in (None, (None,))
            assert task.scorer(problem.answer, problem.answer, problem.metadata).value == 1.0
            assert sql_syntax(problem.answer, problem.metadata).value == 1.0
            assert linking(problem.answer, problem.answer).value == 1.0


def test_most_questions_have_a_result_of_their_own():
    task = TextToSQL()
    held_out, train = everything(task)
    with closing(sqlite3.connect(task.database)) as connection:
        results = [frozenset(connection.execute(p.answer).fetchall()) for p in [*held_out, *train]]
    assert len(set(results)) > 0.7 * len(results)
    assert max(results.count(result) for result in set(results)) < 10


def test_words_of_a_question_say_what_its_query_holds():
    for question, query in questions():
        said = re.findall(r"\d+|France|Japan|Chile|Kenya|jazz|rock|folk|pop|Rome|Oslo|Lima|Cairo", question)
        assert sorted(said) == sorted(re.findall(r"\d+|(?<=')\w+(?=')", query))
        assert ("over" in question.split()) == (">" in query)
        assert ("under" in question.split()) == ("<" in query)
        assert ("how many" in question) == ("COUNT" in query)
        assert ("for each" in question) == ("GROUP BY" in query)


def test_the_database_is_what_the_script_makes_and_its_numbers_differ():
    task = TextToSQL()
    with closing(sqlite3.connect(task.database)) as connection:
        for table in TABLES:
            for number, (low, high) in table.numbers.items():
                column = [row[0] for row in connection.execute(f"SELECT {number} FROM {table.name}")]
                assert len(set(column)) == ROWS
                assert min(column) >= low
                assert max(column) <= high
            counts = connection.execute(f"SELECT COUNT(*) FROM {table.name} GROUP BY {table.category}").fetchall()
            assert counts == [(ROWS // 4,)] * 4
        dumped = "\n".join(connection.iterdump())
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(database_script(0))
        assert dumped == "\n".join(connection.iterdump())


def test_the_file_is_made_once_and_again_where_it_is_missing(cache):
    first = TextToSQL()
    assert [entry.name for entry in cache.iterdir()] == [first.database.name]
    before = first.database.stat().st_mtime_ns
    assert TextToSQL().database.stat().st_mtime_ns == before
    first.database.unlink()
    assert TextToSQL().database == first.database
    assert first.database.is_file()
    assert TextToSQL(seed=1).database != first.database


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GUERDON_CACHE", str(tmp_path / "file"))
    with pytest.raises(TaskError, match="cannot write its database .*name a folder in GUERDON_CACHE"):
        TextToSQL()


def test_paths_are_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GUERDON_CACHE", "here")
    (problem,) = TextToSQL().eval_problems(1)
    assert os.path.isabs(problem.metadata["database"])


def test_a_batch_is_a_pure_function_of_its_seed():
    task = TextToSQL()
    assert task.train_batch(20, 1) == TextToSQL().train_batch(20, 1)
    assert task.train_batch(20, 1) != task.train_batch(20, 2)
    assert len({p.task_id for p in task.train_batch(20, 1)}) == 20
    assert task.eval_problems(10) == task.eval_problems(100)[:10]


def test_a_wrong_query_is_wrong_and_a_set_has_no_order():
    task = TextToSQL()
    known = task.eval_problems(1)[0].metadata
    assert task.scorer("SELECT name FROM singer ORDER BY age", "SELECT name FROM singer", known).value == 1.0
    assert task.scorer("SELECT name FROM stadium", "SELECT name FROM singer", known).value == 0.0


def test_the_schema_may_stand_before_the_question():
    plain, shown = TextToSQL().eval_problems(3), TextToSQL(show_schema=True).eval_problems(3)
    for without, with_schema in zip(plain, shown, strict=True):
        assert with_schema.prompt.endswith(without.prompt)
        assert with_schema.prompt.startswith("CREATE TABLE singer (id INTEGER, name TEXT, country TEXT, age INTEGER")
        assert with_schema.task_id == without.task_id


def test_the_corpus_holds_no_held_out_question():
    task = TextToSQL()
    texts = set(task.corpus())
    assert not texts & {text for p in task.eval_problems(100) for text in (p.prompt, p.answer)}
    letters = set("".join(texts))
    assert letters >= set("".join(p.prompt + p.answer for p in task.eval_problems(100)))


def test_too_much_is_refused():
    with pytest.raises(TaskError, match="holds out 100 questions, want 101; raise eval_size"):
        TextToSQL().eval_problems(101)
    with pytest.raises(TaskError, match="training questions, want a batch of 1000; lower the batch"):
        TextToSQL().train_batch(1000, 0)
    for size in (-1, 600):
        with pytest.raises(TaskError, match=f"eval_size is {size} and there are"):
            TextToSQL(eval_size=size)
