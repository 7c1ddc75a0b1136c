import sqlite3
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guerdon.errors import RewardError
from guerdon.rewards import sql_compare
from guerdon.rewards.sql_compare import Comparison, Result, Source, compare, difference, orders, run_query

SCRIPT = """
CREATE TABLE t (a INTEGER, b TEXT, c REAL);
INSERT INTO t VALUES (1, 'x', 0.1), (2, 'y', 0.2), (2, 'y', 0.2), (NULL, NULL, NULL);
"""
MEMORY = Source(script=SCRIPT)


def differ(seen, wanted, ordered=False, rel_tol=1e-9, abs_tol=1e-12):
    width = max((len(row) for row in (*seen, *wanted)), default=1)
    return difference(Result(width, seen), Result(width, wanted), ordered=ordered, rel_tol=rel_tol, abs_tol=abs_tol)


@pytest.mark.parametrize(
    ("query", "orders_rows"),
    [
        ("SELECT a FROM t ORDER BY a", True),
        ("select a from t order\n\tby a limit 1", True),
        ("SELECT a FROM t ORDER /* so */ BY a", True),
        ("SELECT a FROM t UNION SELECT b FROM t ORDER BY 1", True),
        ("WITH x AS (SELECT a FROM t ORDER BY a) SELECT * FROM x", False),
        ("SELECT a FROM (SELECT a FROM t ORDER BY a)", False),
        ("SELECT rank() OVER (ORDER BY a) FROM t", False),
        ("SELECT ' ORDER BY ' FROM t", False),
        ('SELECT "ORDER BY" FROM t', False),
        ("SELECT a FROM t -- ORDER BY a", False),
        ("SELECT a /* ORDER BY a */ FROM t", False),
        ("SELECT ')' FROM t ORDER BY 1", True),
        ("SELECT reorder, by FROM t", False),
        ("SELECT a FROM [order by]", False),
        ("SELECT 'it''s (' FROM t ORDER BY 1", True),
    ],
)
def test_which_queries_order_their_result(query, orders_rows):
    assert orders(query) is orders_rows


@pytest.mark.parametrize(
    ("seen", "wanted"),
    [
        ([], []),
        ([(1,), (2,)], [(2,), (1,)]),
        ([(1,)], [(1.0,)]),
        ([(0.1 + 0.2,)], [(0.3,)]),
        ([(0.1 + 0.2, "b"), (0.3, "a")], [(0.3, "b"), (0.1 + 0.2, "a")]),
        ([(None,)], [(None,)]),
        ([(b"x",)], [(b"x",)]),
        ([(1e-13,)], [(0,)]),
        ([(float("inf"),)], [(float("inf"),)]),
        ([(1, "x"), (None, "y"), ("z", 2.5)], [("z", 2.5), (1, "x"), (None, "y")]),
    ],
)
def test_equal_results(seen, wanted):
    assert differ(seen, wanted) == ""
    assert differ(wanted, seen) == ""


@pytest.mark.parametrize(
    ("seen", "wanted", "why"),
    [
        ([(1,), (1,), (2,)], [(1,), (2,), (2,)], "1 of 3 rows are not wanted, such as (1,)"),
        ([(1,)], [("1",)], "1 of 1 rows are not wanted, such as (1,)"),
        ([("a",)], [(b"a",)], "not wanted"),
        ([("a",)], [("A",)], "not wanted"),
        ([(None,)], [(0,)], "not wanted"),
        ([(None,)], [("",)], "not wanted"),
        ([(0.1,)], [(0.1001,)], "not wanted"),
        ([(10**12,)], [(10**12 + 1,)], "not wanted"),
        ([(1, 2)], [(2, 1)], "not wanted"),
        ([(1, "a"), (2, "b")], [(1, "b"), (2, "a")], "2 of 2 rows are not wanted"),
        ([(1,)], [], "more than 0 rows, want 0"),
        ([], [(1,)], "0 rows, want 1"),
        ([(1,)], [(1,), (1,)], "1 rows, want 2"),
    ],
)
def test_different_results(seen, wanted, why):
    assert why in differ(seen, wanted)
    assert differ(seen, wanted, ordered=True) != ""


def test_columns_are_counted():
    assert difference(Result(2, []), Result(1, []), ordered=False, rel_tol=0, abs_tol=0) == "2 columns, want 1"


def test_order_counts_where_it_is_asked_for():
    seen, wanted = [(2,), (1,)], [(1,), (2,)]
    assert differ(seen, wanted) == ""
    assert differ(seen, wanted, ordered=True) == "the rows are right and their order is not: row 0 is (2,), want (1,)"
    assert differ([(1,), (3,)], wanted, ordered=True) == "the rows differ: row 1 is (3,), want (2,)"


def test_tolerances():
    assert differ([(1.01,)], [(1.0,)], rel_tol=0.02) == ""
    assert differ([(1.01,)], [(1.0,)], rel_tol=0.005) != ""
    assert differ([(0.01,)], [(0.0,)], abs_tol=0.02) == ""
    assert differ([(101,)], [(100,)], rel_tol=0.02) != ""


VALUES = st.none() | st.integers(-3, 3) | st.sampled_from([0.5, 1.0, 0.1 + 0.2, 0.3]) | st.text("ab", max_size=1)
ROWS = st.lists(st.tuples(VALUES, VALUES), max_size=6)


@given(ROWS, st.randoms(use_true_random=False))
def test_a_permutation_is_equal_and_one_row_less_is_not(rows, random):
    shuffled = random.sample(rows, len(rows))
    assert differ(shuffled, rows) == ""
    if rows:
        assert differ(rows[1:], rows) != ""


@given(ROWS, ROWS)
def test_the_comparison_is_symmetric(first, second):
    assert bool(differ(first, second)) == bool(differ(second, first))


def test_queries_on_a_script():
    assert compare(MEMORY, "SELECT a FROM t", "SELECT a FROM t ORDER BY a DESC", Comparison()).why == ""
    assert compare(MEMORY, "SELECT a FROM t ORDER BY a", "SELECT a FROM t ORDER BY a DESC", Comparison()).why != ""
    assert compare(MEMORY, "SELECT a FROM t", "SELECT DISTINCT a FROM t", Comparison()).why == "3 rows, want 4"
    ordered = Comparison(ordered="always")
    assert "order" in compare(MEMORY, "SELECT a FROM t", "SELECT a FROM t ORDER BY a DESC", ordered).why
    never = Comparison(ordered="never")
    assert compare(MEMORY, "SELECT a FROM t ORDER BY a", "SELECT a FROM t ORDER BY a DESC", never).why == ""


def test_a_query_is_equal_differs_or_fails():
    kinds = {"SELECT a FROM t": "equal", "SELECT b FROM t": "differs", "SELECT z FROM t": "fails"}
    for query, kind in kinds.items():
        assert compare(MEMORY, "SELECT a FROM t", query, Comparison()).kind == kind
        assert bool(compare(MEMORY, "SELECT a FROM t", query, Comparison()).why) == (kind != "equal")
        assert compare(MEMORY, None, query, Comparison()).kind == ("fails" if kind == "fails" else "equal")


def test_sets_of_rows_ignore_order_and_duplicates_and_keep_tolerances():
    few = Comparison(rows="set", ordered="always", max_rows=4)
    assert (
        compare(MEMORY, "SELECT a FROM t ORDER BY a", "SELECT DISTINCT a FROM t ORDER BY a DESC", few).kind == "equal"
    )
    assert compare(MEMORY, "SELECT c FROM t", "SELECT c + 1e-14 FROM t", few).kind == "equal"
    assert compare(MEMORY, "SELECT a FROM t", "SELECT a FROM t WHERE a > 1", few).kind == "differs"
    many = compare(MEMORY, "SELECT a FROM t", "SELECT a FROM t UNION ALL SELECT a FROM t", few)
    assert many == ("differs", "more than 4 rows")


def test_a_result_is_fetched_no_further_than_it_can_matter():
    with closing(sqlite3.connect(":memory:")) as database:
        endless = "WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM r) SELECT x FROM r"
        assert run_query(database, endless, 5.0, 3) == Result(1, [(1,), (2,), (3,)])
    assert compare(MEMORY, "SELECT 1", endless, Comparison(wall_time=5.0)).why == "more than 1 rows, want 1"


def test_a_changed_database_is_read_again(tmp_path):
    path = tmp_path / "d b?.sqlite"
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE t (a)")
    source = Source(path=str(path))
    assert compare(source, "SELECT a FROM t", "SELECT 1 LIMIT 0", Comparison()).why == ""
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("INSERT INTO t VALUES (1)")
    assert compare(source, "SELECT a FROM t", "SELECT 1 LIMIT 0", Comparison()).why == "0 rows, want 1"
    assert compare(source, "SELECT a FROM t", "SELECT a FROM t", Comparison()).why == ""


def test_the_file_itself_is_opened_read_only(tmp_path):
    path = tmp_path / "t.sqlite"
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE t (a)")
    with closing(sql_compare._open(Source(path=str(path)))) as database:
        with pytest.raises(sqlite3.DatabaseError, match="not authorized"):
            database.execute("INSERT INTO t VALUES (1)")
        database.set_authorizer(None)
        database.execute("PRAGMA query_only = OFF")
        with pytest.raises(sqlite3.OperationalError, match="readonly database"):
            database.execute("INSERT INTO t VALUES (1)")


def test_text_that_is_no_utf8_is_read(tmp_path):
    source = Source(script="CREATE TABLE t (a); INSERT INTO t VALUES (CAST(x'ff41' AS TEXT));")
    assert compare(source, "SELECT a FROM t", "SELECT a FROM t", Comparison()).why == ""


@pytest.mark.parametrize(
    ("source", "reference", "settings", "why"),
    [
        (MEMORY, "SELECT z FROM t", Comparison(), "the reference query fails: SQLite refuses it: no such column: z"),
        (MEMORY, "DROP TABLE t", Comparison(), "the reference query fails: SQLite refuses it: not authorized"),
        (MEMORY, "-- nothing", Comparison(), "the reference query fails: it is no query"),
        (MEMORY, "SELECT a FROM t", Comparison(max_rows=3), "gives more than 3 rows"),
        (Source(script="CREATE TABLE"), "SELECT 1", Comparison(), "the problem's script makes no SQLite database"),
    ],
)
def test_what_is_no_usable_reference_is_an_error(source, reference, settings, why):
    with pytest.raises(RewardError, match=why):
        compare(source, reference, "SELECT 1", settings)


def test_a_file_that_is_no_database_is_an_error(tmp_path):
    path = tmp_path / "no.sqlite"
    path.write_text("this is text, and long enough to be taken for a header of a database file" * 20)
    with pytest.raises(RewardError, match=r"no\.sqlite' makes no SQLite database: file is not a database"):
        compare(Source(path=str(path)), "SELECT 1", "SELECT 1", Comparison())
