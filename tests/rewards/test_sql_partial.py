import sqlite3
import time
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guerdon.errors import RecipeError, RewardError
from guerdon.recipe import load_recipe
from guerdon.registry import get
from guerdon.rewards import sql_partial
from guerdon.rewards.judges import JudgeError, UnreadableVerdict, Verdict
from guerdon.rewards.sql import SqlSchemaLinking, sql_execution
from guerdon.rewards.sql_partial import SqlJudge, sql_ngrams, sql_syntax, tag_boundaries
from guerdon.training.plan import make_plan

SCRIPT = """
CREATE TABLE singer (id INTEGER, name TEXT, country TEXT, age INTEGER);
CREATE TABLE concert (id INTEGER, singer_id INTEGER, year INTEGER);
INSERT INTO singer VALUES (1, 'Ana', 'France', 30), (2, 'Ben', 'Japan', 41), (3, 'Cid', 'France', 52);
INSERT INTO concert VALUES (1, 1, 2014), (2, 1, 2015), (3, 3, 2014);
"""
KNOWN = {"script": SCRIPT}
GOLD = "SELECT name FROM singer WHERE country = 'France' AND age > 35"
NEAR = "SELECT name FROM singer WHERE country = 'Japan' AND age > 35"
UNRELATED = "SELECT year FROM concert"
BROKEN = "SELECT name FROM singers"


def framed(query):
    return f"<reasoning>\nso\n</reasoning>\n<answer>\n```sql\n{query}\n```\n</answer>"


def parts(query, gold=GOLD):
    """The published components of a framed query, without a judge."""
    text = framed(query)
    scores = {
        "execution": 3 * sql_execution(text, gold, KNOWN, rows="set").value,
        "syntax": sql_syntax(text, KNOWN).value,
        "schema": SqlSchemaLinking(measure="recall")(text, gold).value,
        "ngrams": sql_ngrams(text, gold).value,
        "format": tag_boundaries(text).value,
    }
    return scores


def test_the_reference_query_earns_six_and_a_half():
    assert parts(GOLD) == {"execution": 3.0, "syntax": 1.0, "schema": 1.0, "ngrams": 1.0, "format": 0.5}


def test_a_near_miss_earns_all_but_the_rows():
    seen = parts(NEAR)
    assert (seen["execution"], seen["syntax"], seen["schema"]) == (0.0, 1.0, 1.0)
    assert 0.4 < seen["ngrams"] < 1
    assert seen["ngrams"] == pytest.approx(9 / 13)  # 11 runs in each query; the value is in two of them


def test_a_table_that_is_not_there_is_no_syntax():
    seen = parts(BROKEN)
    assert (seen["execution"], seen["syntax"]) == (0.0, 0.0)
    assert sql_syntax(BROKEN, KNOWN).detail["why"] == "SQLite refuses it: no such table: singers"


def test_better_queries_earn_strictly_more():
    totals = [sum(parts(query).values()) for query in (GOLD, NEAR, UNRELATED, BROKEN, "no query at all")]
    assert totals == sorted(set(totals), reverse=True)


def test_aliases_are_no_tables():
    aliased = "SELECT s.name FROM singer AS s JOIN concert AS c ON c.singer_id = s.id WHERE c.year = 2014"
    plain = "SELECT singer.name FROM singer JOIN concert ON concert.singer_id = singer.id WHERE concert.year = 2014"
    recall = SqlSchemaLinking(measure="recall")
    assert recall.links(aliased) == recall.links(plain)
    assert parts(aliased, plain)["schema"] == 1.0
    assert recall("SELECT singer FROM concert AS singer", GOLD).value == 0.0


def test_recall_pays_for_naming_every_column_and_jaccard_does_not():
    everything = "SELECT id, name, country, age, singer_id, year FROM singer, concert"
    named, wanted = 8, 4  # two tables and six columns; a table and three columns
    assert SqlSchemaLinking(measure="recall")(everything, GOLD).value == 1.0
    assert SqlSchemaLinking(measure="recall")(everything, GOLD).detail["missing"] == []
    assert SqlSchemaLinking(measure="jaccard")(everything, GOLD).value == pytest.approx(wanted / named)
    assert SqlSchemaLinking(measure="recall")("SELECT * FROM singer", GOLD).value == 1 / wanted


def test_sets_of_rows():
    once, twice = "SELECT DISTINCT country FROM singer", "SELECT country FROM singer"
    ordered = "SELECT country FROM singer ORDER BY country"
    for query, gold in ((once, twice), (twice, once), (twice, ordered), (ordered, once)):
        assert sql_execution(query, gold, KNOWN, rows="set").value == 1.0
    assert sql_execution(once, twice, KNOWN).value == 0.0
    wrong = sql_execution("SELECT name FROM singer", once, KNOWN, rows="set")
    assert (wrong.value, wrong.detail) == (0.0, {"why": "2 different rows are missing and 3 not wanted"})
    fewer = sql_execution("SELECT country FROM singer WHERE age > 50", twice, KNOWN, rows="set")
    assert fewer.detail == {"why": "1 different rows are missing and 0 not wanted"}
    assert sql_execution("SELECT country, age FROM singer", twice, KNOWN, rows="set").value == 0.0


def test_a_set_is_read_up_to_the_cap_of_rows():
    endless = "WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT 1 FROM r) SELECT x FROM r"
    seen = sql_execution(endless, "SELECT 1", KNOWN, rows="set", max_rows=100)
    assert (seen.value, seen.detail) == (0.0, {"why": "more than 100 rows"})
    full = sql_execution(f"{endless} LIMIT 100", "SELECT 1", KNOWN, rows="set", max_rows=100)
    assert full.value == 1.0


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no query in the text"),
        ("I cannot answer that.", "SQLite refuses it"),
        ("SELECT z FROM singer", "no such column: z"),
        ("DELETE FROM singer", "not authorized"),
        ("UPDATE singer SET age = 1 RETURNING age", "not authorized"),
        ("DROP TABLE singer", "not authorized"),
        ("SELECT 1; SELECT 2", "one statement at a time"),
        ("PRAGMA query_only = OFF", "not authorized"),
        ("-- nothing", "it is no query"),
        ("SELECT '" + "x" * 20_000 + "'", "longer than 10000 characters"),
        ("WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM r) SELECT sum(x) FROM r", "no result within"),
    ],
)
def test_what_does_not_run_earns_nothing_and_changes_nothing(text, why, tmp_path):
    path = tmp_path / "music.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(SCRIPT)
    before, start = path.read_bytes(), time.perf_counter()
    seen = sql_syntax(text, {"database": str(path)}, wall_time=0.3)
    assert time.perf_counter() - start < 10
    assert seen.value == 0.0
    assert why in seen.detail["why"]
    assert path.read_bytes() == before


def test_syntax_asks_for_one_row_only():
    endless = "WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM r) SELECT x FROM r"
    assert sql_syntax(endless, KNOWN).value == 1.0
    third = "SELECT CASE x WHEN 3 THEN abs(-9223372036854775808) END FROM (SELECT 1 AS x UNION SELECT 2 UNION SELECT 3)"
    assert sql_syntax(third, KNOWN).value == 1.0
    assert "integer overflow" in sql_execution(third, GOLD, KNOWN, rows="set").detail["why"]
    assert sql_syntax("SELECT name FROM singer WHERE age > 99", KNOWN).value == 1.0
    assert sql_syntax("SELECT a FROM t", {"script": "CREATE TABLE t (a)"}).value == 1.0


def test_no_database_is_an_error_of_the_reward_that_asked():
    with pytest.raises(RewardError, match="reward 'sql_syntax': there is no database"):
        sql_syntax("SELECT 1")
    with pytest.raises(RewardError, match="reward 'sql_ngrams': the reference query is None"):
        sql_ngrams("SELECT 1", None)


def test_ngrams_by_hand():
    assert sql_ngrams("SELECT a FROM t", "select A from T;").value == 1.0
    assert sql_ngrams("SELECT a,b FROM t -- both\n", "SELECT a , b FROM t").value == 1.0
    # {select a, a from, from t} and {select b, b from, from t} share one of five.
    assert sql_ngrams("SELECT b FROM t", "SELECT a FROM t").value == pytest.approx(1 / 5)
    assert sql_ngrams("SELECT b FROM t", "SELECT a FROM t", n=1).value == pytest.approx(3 / 5)
    assert sql_ngrams("SELECT a FROM t WHERE b >= 1", "SELECT a FROM t WHERE b > = 1").value < 1
    assert sql_ngrams("SELECT 'it''s -- here' FROM t", "SELECT 'it''s -- here' FROM t").value == 1.0
    assert sql_ngrams("", "SELECT a FROM t") == (0.0, True, {"why": "no query in the text"})
    assert sql_ngrams("x", "y", n=3).value == 1.0, "two empty sets"
    assert sql_ngrams("SELECT a", "y", n=2).value == 0.0


@given(st.text(alphabet="ab '\"()-/*;\n`[]<>=1.", max_size=60), st.text(alphabet="ab '\"()-/*;`[1.", max_size=60))
def test_ngrams_are_symmetric_and_in_range(first, second):
    if not first.strip() or not second.strip() or "```" in first + second:
        return
    value = sql_ngrams(first, second).value
    assert 0 <= value <= 1
    assert value == sql_ngrams(second, first).value
    assert sql_ngrams(first, first).value == 1.0


def test_boundaries_by_hand():
    right = "<reasoning>\nr\n</reasoning>\n<answer>\na\n</answer>"
    assert tag_boundaries(right) == (0.5, True, None)
    assert tag_boundaries(right + "\n") == (0.5, True, None)
    # 10 characters behind the end cost 0.001 each in each of two terms.
    assert tag_boundaries(right + "0123456789").value == pytest.approx(0.5 - 0.02)
    assert tag_boundaries(right + "\n0123456789").value == pytest.approx(0.5 - 0.02)
    assert tag_boundaries(right + "x" * 1000).value == pytest.approx(0.5 - 2.0)
    assert tag_boundaries(right.replace("<answer>\na", "a") + "0123456789").value == pytest.approx(0.375 - 0.01)
    assert tag_boundaries(right.replace("</reasoning>\n", "</reasoning>")).value == pytest.approx(0.25)
    assert tag_boundaries("<reasoning>\n" + right).value == pytest.approx(0.375), "twice is not once"
    assert tag_boundaries("").value == 0.0
    assert tag_boundaries("anything at all, however long " * 100).value == 0.0
    assert (
        tag_boundaries(right).value
        == tag_boundaries(right.replace("reasoning", "think"), names=("think", "answer")).value
    )
    assert tag_boundaries(right, each=1.0).value == 4.0


@given(st.text(alphabet="<>/\nrx", max_size=40))
def test_boundaries_are_total_and_bounded(text):
    text = text.replace("r", "reasoning").replace("x", "answer")
    assert tag_boundaries(text).value <= 0.5


class Recorder:
    """A judge that answers what it is told to, and remembers the questions."""

    def __init__(self, *answers):
        self.answers, self.asked = list(answers), []

    def ask(self, questions):
        self.asked += questions
        given, self.answers = self.answers[: len(questions)], self.answers[len(questions) :]
        return given

    def stats(self):
        return {"questions": float(len(self.asked))}


def judged(judge, texts, answers=None, **options):
    fields = {"prompt": ["who?"] * len(texts), "text": texts, "metadata": [KNOWN] * len(texts)}
    outcome = get("reward", "sql_judge").bind({"judge": judge, **options})(
        fields | {"answer": answers or [GOLD] * len(texts)}
    )
    return outcome.fields["value"], outcome.stats


def test_the_judge_is_asked_only_where_a_query_runs_and_gives_other_rows():
    judge = Recorder(Verdict((0.5,), "half"), Verdict((1.0,)))
    endless = "WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM r) SELECT sum(x) FROM r"
    texts = [framed(GOLD), framed(NEAR), BROKEN, "", endless, framed(UNRELATED)]
    scores, stats = judged(judge, texts, wall_time=0.3)
    assert [score.value for score in scores] == [0.0, 1.0, 0.0, 0.0, 0.0, 2.0]
    assert [question.answers for question in judge.asked] == [(NEAR,), (UNRELATED,)]
    assert {(q.prompt, q.reference, q.low, q.high) for q in judge.asked} == {("who?", GOLD, 0, 10)}
    assert stats == {"questions": 2.0}
    assert scores[1].detail == "half"
    assert "no such table" in scores[2].detail["why"]


def test_the_same_question_is_asked_once():
    judge = Recorder(Verdict((0.25,)), Verdict((1.0,)))
    scores, _ = judged(judge, [NEAR, framed(NEAR), UNRELATED, NEAR])
    assert [score.value for score in scores] == [0.5, 0.5, 2.0, 0.5]
    assert len(judge.asked) == 2


def test_no_wrong_query_earns_what_a_right_one_does():
    scores, _ = judged(Recorder(Verdict((1.0,))), [NEAR], highest=2.9)
    assert scores[0].value == pytest.approx(2.9)
    scores, _ = judged(Recorder(Verdict((7.0,)), Verdict((-1.0,))), [NEAR, UNRELATED])
    assert [score.value for score in scores] == [2.0, 0.0], "a judge off its scale is cut"
    with pytest.raises(RecipeError, match="reward 'sql_judge': 'highest' is 3.0"):
        get("reward", "sql_judge").validate({"judge": Recorder(), "highest": 3.0})


def test_words_without_a_score_are_nothing_and_failures_are_faults():
    unclear, gone = UnreadableVerdict("unclear"), JudgeError("gone")
    scores, _ = judged(Recorder(unclear, gone), [NEAR, UNRELATED])
    assert scores[0].value == 0.0
    assert scores[1] is gone
    faults, _ = judged(Recorder(), [GOLD, GOLD], answers=[None, "SELECT nothing FROM nowhere"])
    assert [type(fault) for fault in faults] == [RewardError, RewardError]
    assert "reward 'sql_judge'" in str(faults[1])


def test_the_published_sum_is_a_recipe():
    rewards = [
        {"name": "sql_execution", "weight": 3, "rows": "set"},
        {"name": "sql_judge", "judge": {"backend": "scripted", "truth": lambda prompt, text, statement: 0.5}},
        "sql_syntax",
        {"name": "sql_schema_linking", "measure": "recall"},
        "sql_ngrams",
        "tag_boundaries",
    ]
    recipe = {"name": "published", "task": {"name": "text_to_sql"}, "policy": "tiny_lm", "rewards": rewards}
    plan = make_plan(load_recipe(recipe))
    assert [reward.weight for reward in plan.rewards] == [3, 1, 1, 1, 1, 1]


def test_the_judge_class_is_what_is_registered():
    assert get("reward", "sql_judge").target is SqlJudge
    assert {get("reward", name).paper for name in ("sql_syntax", "sql_ngrams", "tag_boundaries")} == {sql_partial.PAPER}
