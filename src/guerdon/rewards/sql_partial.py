"""Partial rewards for text-to-SQL: what a query that gives the wrong rows has right all the same.

The published reward is a sum of six components, which a recipe names side by side so that each has its own weight, can
be normalised by itself, or only watched:

    3 sql_execution(rows=set) + sql_judge + sql_syntax + sql_schema_linking(measure=recall) + sql_ngrams
        + tag_boundaries

The judge speaks only where the first is 0, and gives less than 3, so a right query is always worth more.

Source: Pourreza et al. 2025, arXiv 2503.23157; weights as in its training script.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field

from guerdon.errors import RewardError
from guerdon.registry import register
from guerdon.rewards.forms import Score, batched, reward
from guerdon.rewards.judges.base import JudgeOption, ask_counted, resolve_judge
from guerdon.rewards.judges.questions import Answer, JudgeError, Rating
from guerdon.rewards.ngrams import jaccard
from guerdon.rewards.sql import LONGEST, Positive, Rows, query_outcome, reference_query, sql_query
from guerdon.rewards.sql_compare import Comparison
from guerdon.rewards.structure import TagName

PAPER = "Pourreza et al. 2025, arXiv 2503.23157"
CLOSE = (
    "How much of what the question asks for the SQL query gets right: tables, joins, conditions, grouping, columns of "
    "the result. The reference query is right; this one gives other rows, so it is wrong somewhere."
)
_TOKEN = re.compile(
    r"""--[^\n]*|/\*.*?(?:\*/|\Z)|(?P<token>'(?:[^']|'')*'?|"(?:[^"]|"")*"?|`[^`]*`?|\[[^\]]*\]?"""
    r"""|\d+(?:\.\d+)?|\w+|<>|<=|>=|!=|==|\|\||[^\s\w])""",
    re.DOTALL,
)


@reward("sql_syntax", paper=PAPER)
def sql_syntax(text: str, metadata: Any = None, *, database: str | None = None, wall_time: Positive = 5.0) -> Score:
    """Give 1 where a query runs: its first row, or none, comes without an error within the limits.

    What is refused, and where the query and the database are, is as in ``sql_execution``.

    Args:
        text: what the policy wrote.
        metadata: what the task knows of the problem.
        database: path of the database.
        wall_time: seconds until the first row.

    Returns:
        1.0 or 0.0; where it is 0, ``detail`` says under ``why``.

    Raises:
        RewardError: when there is no database.

    Source: Pourreza et al. 2025, arXiv 2503.23157.
    """
    outcome = query_outcome("sql_syntax", text, None, metadata, database, Comparison(wall_time=wall_time))
    return Score(1.0) if outcome.kind == "equal" else Score(0.0, detail={"why": outcome.why})


@reward("sql_ngrams", paper=PAPER)
def sql_ngrams(text: str, answer: Any, *, n: Annotated[int, Field(ge=1)] = 2) -> Score:
    """Score how many runs of tokens a query shares with the reference query.

    |A ∩ B| / |A ∪ B|,  A and B the sets of runs of n tokens of the two; 1 where both are shorter

    A token is a word, a number, something in quotes, or an operator, in lower case; comments, and a semicolon at the
    end, are none. (The source's way to split is not known.)

    Args:
        text: what the policy wrote; where its query stands is as in ``sql_execution``.
        answer: the reference query.
        n: tokens in a run.

    Returns:
        The value in [0,1].

    Raises:
        RewardError: when there is no reference query.

    Source: Pourreza et al. 2025, arXiv 2503.23157.
    """
    wanted = _runs(reference_query("sql_ngrams", answer), n)
    query = sql_query(text)
    if not query or len(query) > LONGEST:
        return Score(0.0, detail={"why": "no query in the text" if not query else f"longer than {LONGEST} characters"})
    return Score(jaccard(_runs(query, n), wanted))


def _runs(query: str, n: int) -> set[tuple[str, ...]]:
    tokens = [match["token"].lower() for match in _TOKEN.finditer(query) if match["token"]]
    while tokens and tokens[-1] == ";":
        tokens.pop()
    return {tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)}


@reward("tag_boundaries", paper=PAPER)
def tag_boundaries(
    text: str,
    *,
    names: tuple[TagName, TagName] = ("reasoning", "answer"),
    each: Annotated[float, Field(ge=0)] = 0.125,
    per_character: Annotated[float, Field(ge=0)] = 0.001,
) -> Score:
    """Pay for each of four boundaries of two tags, and charge for what follows the last of them.

    each (b_1 + b_2 + b_3 + b_4) - per_character characters (b_3 + b_4),  b = 1 for a boundary that stands exactly once

    The boundaries are ``<reasoning>`` and ``<answer>`` with a line break behind, ``</reasoning>`` with one on both
    sides, ``</answer>`` with one before; ``<answer>`` has one before as well. Characters are those behind the last
    ``</answer>``, but for one line break, so a text that goes on for long ends below 0. (The source's script charges a
    text without that line break for all of its characters in one of the two terms.)

    Args:
        text: what the policy wrote.
        names: the two tags.
        each: worth of a boundary.
        per_character: cost of a character behind the end, for each of the two boundaries of the second tag.

    Returns:
        The value, at most ``4 each``; its detail holds the boundaries that do not stand once.

    Source: Pourreza et al. 2025, arXiv 2503.23157.
    """
    first, second = names
    boundaries = [f"<{first}>\n", f"\n</{first}>\n", f"\n<{second}>\n", f"\n</{second}>"]
    right = [text.count(boundary) == 1 for boundary in boundaries]
    behind = text.rpartition(f"</{second}>")[2].removeprefix("\n")
    value = each * sum(right) - per_character * len(behind) * sum(right[2:])
    missing = [boundary.strip() for boundary, once in zip(boundaries, right, strict=True) if not once]
    return Score(value, detail={"not once": missing, "behind": len(behind)} if missing or behind else None)


@register("reward", "sql_judge", paper=PAPER)
@batched
class SqlJudge:
    """Ask a judge how close a query comes that runs and gives the wrong rows.

    highest s,  s in [0,1] the judge's score; 0 for a right query, and for one that fails

    Right queries have ``sql_execution``, with a weight of 3, so that no wrong one is worth as much. The judge sees the
    prompt, both queries and no rows; the same question is asked once. Words of his that hold no score count as 0.

    Args:
        judge: who judges: ``{backend: openai | local | scripted, ...}``, or an import path to a judge.
        highest: what the best of wrong queries earns, below 3.
        criteria: what the judge is told.
        database: path of the database, as in ``sql_execution``.
        wall_time: seconds for each of the two queries.
        max_rows: rows that either query may give.

    Source: Pourreza et al. 2025, arXiv 2503.23157; the bound is inferred.
    """

    def __init__(
        self,
        *,
        judge: JudgeOption,
        highest: Annotated[float, Field(ge=0, lt=3)] = 2.0,
        criteria: str = CLOSE,
        database: str | None = None,
        wall_time: Positive = 5.0,
        max_rows: Rows = 10_000,
    ) -> None:
        self.judge = resolve_judge(judge)
        self.highest, self.criteria, self.database = highest, criteria, database
        self.settings = Comparison(wall_time=wall_time, max_rows=max_rows, rows="set")

    def __call__(
        self,
        prompt: Sequence[str],
        text: Sequence[str],
        answer: Sequence[Any],
        metadata: Sequence[Mapping[str, Any] | None] | None = None,
    ) -> tuple[list[Score | RewardError], dict[str, float]]:
        """Score a batch.

        Args:
            prompt, text: N questions and what the policy wrote.
            answer: N reference queries.
            metadata: what the task knows of each problem.

        Returns:
            N scores, errors in the place of faults, and what the judge did.
        """
        known = [None] * len(text) if metadata is None else metadata
        rows = [self._wrong(*row) for row in zip(prompt, text, answer, known, strict=True)]
        questions = list(dict.fromkeys(row for row in rows if isinstance(row, Rating)))
        answers, stats = ask_counted(self.judge, questions)
        scores = dict(zip(questions, map(self._score, answers), strict=True))
        return [scores[row] if isinstance(row, Rating) else row for row in rows], stats

    def _wrong(self, prompt: str, text: str, answer: Any, metadata: Any) -> Rating | Score | RewardError:
        """The question about a query that is wrong, or what the sample gets without one."""
        try:
            reference = reference_query("sql_judge", answer)
            outcome = query_outcome("sql_judge", text, reference, metadata, self.database, self.settings)
        except RewardError as error:
            return error
        if outcome.kind != "differs":
            return Score(0.0, detail={"why": outcome.why} if outcome.why else None)
        return Rating(
            prompt=prompt, answers=(sql_query(text),), criteria=self.criteria, reference=reference, low=0, high=10
        )

    def _score(self, answer: Answer) -> Score | JudgeError:
        from guerdon.rewards.judge_single import scored  # loads torch, which no other reward here needs

        return scored(answer, 0.0, lambda values: self.highest * min(1.0, max(0.0, values[0])))
