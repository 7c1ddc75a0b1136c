import hashlib
import sqlite3
import time
from contextlib import closing

import pytest
from batches import batch_of

from guerdon.errors import RecipeError, RewardError
from guerdon.registry import get
from guerdon.rewards import sql
from guerdon.rewards.base import Reward, score
from guerdon.rewards.sql import SqlSchemaLinking, sql_execution, sql_query

SCRIPT = "CREATE TABLE t (a INTEGER, b TEXT); INSERT INTO t VALUES (1, 'x'), (2, 'y'), (2, 'y');"
KNOWN = {"script": SCRIPT}
ENDLESS = "WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM r)"


@pytest.fixture
def database(tmp_path):
    path = tmp_path / "shop.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(SCRIPT)
    return path


@pytest.mark.parametrize(
    ("text", "query"),
    [
        (" SELECT 1;\n", "SELECT 1;"),
        ("So:\n```sql\nSELECT 1\n```\nor\n```SQL\nSELECT 2\n```\n", "SELECT 2"),
        ("```\nSELECT 1\n```", "SELECT 1"),
        ("```sql\nSELECT 1\n```\n```\n1\n```", "SELECT 1"),
        ("```python\nprint()\n```", ""),
        ("```sql\nSELECT", "SELECT"),
        ("", ""),
    ],
)
def test_where_the_query_stands(text, query):
    assert sql_query(text) == query


def test_right_and_wrong_queries(database):
    for options, known in (({}, KNOWN), ({"database": str(database)}, None), ({}, {"database": str(database)})):
        right = sql_execution(
            "```sql\nSELECT b, a FROM t WHERE a > 1;\n```", "SELECT b, a FROM t LIMIT 2 OFFSET 1", known, **options
        )
        assert (right.value, right.detail) == (1.0, None)
        wrong = sql_execution("SELECT a FROM t", "SELECT DISTINCT a FROM t", known, **options)
        assert (wrong.value, wrong.detail) == (0.0, {"why": "more than 2 rows, want 2"})


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no query in the text"),
        ("```python\n1\n```", "no query in the text"),
        ("I cannot answer that.", "SQLite refuses it: near"),
        ("SELECT", "SQLite refuses it: incomplete input"),
        ("SELECT z FROM t", "SQLite refuses it: no such column: z"),
        ("-- nothing", "it is no query"),
        ("SELECT a FROM t; SELECT a FROM t", "one statement at a time"),
        ("SELECT a FROM t; DROP TABLE t", "one statement at a time"),
        ("SELECT a FROM t\x00", "null character"),
        ("SELECT '\ud800'", "surrogates not allowed"),
        ("DROP TABLE t", "not authorized"),
        ("DELETE FROM t RETURNING a", "not authorized"),
        ("INSERT INTO t VALUES (1, 'x')", "not authorized"),
        ("CREATE TEMP TABLE u AS SELECT 1", "not authorized"),
        ("ATTACH ':memory:' AS other", "not authorized"),
        ("ATTACH '/etc/passwd' AS other", "not authorized"),
        ("DETACH main", "not authorized"),
        ("VACUUM INTO '/tmp/copy'", "authorization denied"),
        ("PRAGMA query_only = OFF", "not authorized"),
        ("PRAGMA table_info(t)", "not authorized"),
        ("SELECT * FROM pragma_table_info('t')", "not authorized"),
        ("BEGIN EXCLUSIVE", "not authorized"),
        ("SELECT load_extension('x')", "not authorized"),
        ("SELECT readfile('/etc/passwd')", "no such function"),
        ("SELECT writefile('x', 'y')", "no such function"),
        ("SELECT zeroblob(1000000000)", "too big"),
        ("SELECT " + "(" * 4000 + "1" + ")" * 4000, "SQLite refuses it"),
        ("SELECT 1" + " UNION ALL SELECT 1" * 60, "too many terms in compound SELECT"),
        ("SELECT " + "1," * 600 + "1", "too many columns"),
        ("SELECT '" + "x" * 20_000 + "'", "longer than 10000 characters"),
        (f"{ENDLESS} SELECT x FROM r", "more than 3 rows"),
        (f"{ENDLESS} SELECT count(*) FROM r", "no result within 0.3 s"),
        ("SELECT count(*) FROM " + ", ".join(f"t t{i}" for i in range(40)), "no result within 0.3 s"),
    ],
)
def test_a_query_that_fails_or_attacks_earns_nothing_and_says_why(text, why, database):
    before = hashlib.sha256(database.read_bytes()).hexdigest()
    start = time.perf_counter()
    found = sql_execution(text, "SELECT a FROM t", database=str(database), wall_time=0.3)
    assert time.perf_counter() - start < 10
    assert found.value == 0.0
    assert why in found.detail["why"]
    assert hashlib.sha256(database.read_bytes()).hexdigest() == before
    assert [entry.name for entry in database.parent.iterdir()] == [database.name]


# Each is one instruction of SQLite's machine: a billion characters; 2e5 characters compared at 2e5 places.
_LONG = "replace(hex(zeroblob(400000)), '00', 'a')"
BLIND = ["printf('%.*c', 1000000000, 'x')", " + ".join([f"instr({_LONG}, substr({_LONG}, 1, 200000) || 'b')"] * 20)]


@pytest.mark.parametrize("value", BLIND)
def test_a_query_that_the_clock_cannot_reach_ends_with_its_process(value, monkeypatch):
    monkeypatch.setattr(sql, "_GRACE", 0.5)
    found = sql_execution(f"SELECT {value}", "SELECT a FROM t", KNOWN, wall_time=0.2)
    assert found.value == 0.0
    assert found.detail["why"].startswith("the query ended its process: timeout")
    assert sql_execution("SELECT a FROM t", "SELECT a FROM t", KNOWN).value == 1.0


def test_a_query_that_eats_memory_is_refused():
    blobs = "WITH RECURSIVE r(x) AS (SELECT zeroblob(900000) UNION ALL SELECT zeroblob(900000) FROM r)"
    query = f"{blobs} SELECT x FROM r ORDER BY x"
    found = sql_execution(query, "SELECT a FROM t", KNOWN, wall_time=20.0)
    assert (found.value, found.detail["why"][:36]) == (0.0, "the query ended its process: memory,")
    assert sql_execution("SELECT a FROM t", "SELECT a FROM t", KNOWN).value == 1.0


@pytest.mark.parametrize(
    ("answer", "known", "options", "why"),
    [
        (None, KNOWN, {}, "the reference query is None"),
        (" ", KNOWN, {}, "the reference query is ' '"),
        ("SELECT z FROM t", KNOWN, {}, "no such column: z; .*reference query: SELECT z FROM t"),
        (f"{ENDLESS} SELECT count(*) FROM r", KNOWN, {"wall_time": 0.1}, "the reference query fails: no result within"),
        ("SELECT 1", None, {}, "there is no database"),
        ("SELECT 1", {"script": 5}, {}, "there is no database"),
        ("SELECT 1", {"script": "CREATE"}, {}, "script makes no SQLite database"),
        ("SELECT 1", {"database": "no/such/file"}, {}, "no database at 'no/such/file'"),
        ("SELECT 1", {"x": 1}, {"database": "{db_id}.sqlite"}, "cannot be filled .*KeyError: 'db_id'.* which has x"),
        ("SELECT 1", {}, {"database": "{0}.sqlite"}, "cannot be filled"),
    ],
)
def test_a_reference_or_database_that_cannot_be_used_is_an_error(answer, known, options, why):
    with pytest.raises(RewardError, match=why):
        sql_execution("SELECT 1", answer, known, **options)


def test_the_path_is_filled_from_the_metadata(database):
    pattern = str(database.parent / "{db_id}.sqlite")
    assert sql_execution("SELECT a FROM t", "SELECT a FROM t", {"db_id": "shop"}, database=pattern).value == 1.0


def test_the_reward_stage_scores_and_records():
    method = get("reward", "sql_execution")
    assert (method.requires, method.optional) == (("text", "answer"), ("metadata",))
    texts, answers = ["SELECT a FROM t", "SELECT 1", "SELECT 1"], ["SELECT a FROM t", "SELECT 2", "SELECT z"]
    batch = batch_of(texts, answer=answers, metadata=[KNOWN] * 3)
    batch, faults = score(batch, [Reward("sql", method, method.validate({}))])
    assert batch.rewards["sql"][:2].tolist() == [1.0, 0.0]
    assert batch.detail[1] == {"sql": {"why": "1 of 1 rows are not wanted, such as (1,)"}}
    assert [(fault.row, fault.kind) for fault in faults] == [(2, "exception")]
    assert "RewardError: reward 'sql_execution'" in faults[0].message


@pytest.mark.parametrize("options", [{"wall_time": 0}, {"max_rows": 0}, {"ordered": "maybe"}, {"rel_tol": -1}])
def test_options_without_meaning_are_refused(options):
    with pytest.raises(RecipeError, match="reward 'sql_execution'"):
        get("reward", "sql_execution").validate(options)


@pytest.mark.parametrize(
    ("query", "links"),
    [
        ("SELECT a FROM t", {"table t", "column a"}),
        ("SELECT X.A FROM T AS x", {"table t", "column a"}),
        ('SELECT "a" FROM [t]', {"table t", "column a"}),
        ("SELECT * FROM t", {"table t"}),
        ("SELECT count(*) AS n FROM t GROUP BY b ORDER BY n", {"table t", "column b"}),
        ("SELECT t.a, u.b FROM t JOIN u ON t.k = u.k", {"table t", "table u", "column a", "column b", "column k"}),
        ("WITH s AS (SELECT a AS z FROM t) SELECT s.z, z FROM s", {"table t", "column a"}),
        ("SELECT s.n, b FROM u JOIN (SELECT count(*) AS n FROM t) s", {"table t", "table u", "column b"}),
        (
            "SELECT a FROM t WHERE EXISTS (SELECT 1 FROM u WHERE u.x = t.y)",
            {"table t", "table u", "column a", "column x", "column y"},
        ),
        ("SELECT a FROM t UNION SELECT b FROM u", {"table t", "table u", "column a", "column b"}),
        ("WITH RECURSIVE r AS (SELECT a FROM t UNION ALL SELECT a FROM r) SELECT a FROM r", {"table t", "column a"}),
        ("SELECT 1", set()),
    ],
)
def test_tables_and_columns_of_a_query(query, links):
    assert SqlSchemaLinking().links(query) == links


def test_linking_by_hand():
    reference = "SELECT t.a, u.b FROM t JOIN u ON t.k = u.k"  # five
    assert SqlSchemaLinking()(reference, reference) == (1.0, True, None)
    some = SqlSchemaLinking()("```sql\nSELECT a, c FROM t\n```", reference)  # t, a and one more
    assert some.value == pytest.approx(2 * 2 / (3 + 5))
    assert some.detail == {"missing": ["column b", "column k", "table u"], "extra": ["column c"]}
    assert SqlSchemaLinking(measure="jaccard")("SELECT a, c FROM t", reference).value == pytest.approx(2 / 6)
    assert SqlSchemaLinking()("SELECT 42", reference).value == 0.0
    everything = "SELECT " + ", ".join(f"c{i}" for i in range(100)) + ", a, b, k FROM t, u"
    assert SqlSchemaLinking()(everything, reference).value == pytest.approx(10 / 110)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no query in the text"),
        ("I don't know", "cannot be parsed"),
        ("SELECT FROM WHERE", "cannot be parsed"),
        ("SELECT CASE WHEN SELECT", "cannot be parsed"),
        ("DROP TABLE t", "want one query and nothing else"),
        ("PRAGMA table_info(t)", "want one query and nothing else"),
        ("SELECT a FROM t; SELECT b FROM t", "want one query and nothing else"),
        ("-- nothing", "want one query and nothing else"),
        ("(" * 5000, "nested too deeply"),
        ("SELECT " + "(" * 4000 + "a" + ")" * 4000, "nested too deeply"),
        ("SELECT a FROM t WHERE " + "NOT " * 2000 + "a", "nested too deeply"),
        ("SELECT " + "(SELECT " * 1000, "nested too deeply"),
        ("SELECT '" + "x" * 20_000, "longer than 10000 characters"),
    ],
)
def test_a_text_without_a_query_links_nothing_and_says_why(text, why):
    start = time.perf_counter()
    found = SqlSchemaLinking()(text, "SELECT a FROM t")
    assert time.perf_counter() - start < 5
    assert found.value == 0.0
    assert why in found.detail["why"]
    assert "\x1b" not in found.detail["why"]


@pytest.mark.parametrize("answer", [None, "", "no SQL at all", "DROP TABLE t", "SELECT 1", 5])
def test_a_reference_that_links_nothing_is_an_error(answer):
    with pytest.raises(RewardError, match="reward 'sql_schema_linking'"):
        SqlSchemaLinking()("SELECT a FROM t", answer)


def test_dialects():
    assert SqlSchemaLinking(dialect="bigquery")("SELECT a FROM `t`", "SELECT a FROM t").value == 1.0
    with pytest.raises(RewardError, match="sqlglot knows no dialect 'klingon'"):
        SqlSchemaLinking(dialect="klingon")
