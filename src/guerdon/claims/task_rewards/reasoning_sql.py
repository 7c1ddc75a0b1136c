"""Where a query of a weak model is almost never right, the rows it gives are no signal. Partial rewards for running at
all, for the tables and columns that are named, and for runs of words in common with the reference say which of two
wrong queries is the better one, while a right query is still worth most.

The policy is a table over a grammar: the word at each of five places of a query on a database of three tables. Few
columns are in more than one of them, so three in four of 480 queries do not run. Eight questions begin at a chance of
one in two hundred for their reference query. Each query is written out and scored by the registered rewards, without
the judge, who would need a model; what he may add is checked by itself. Rows alone are a signal here too, once a query
has been right by chance: in the same steps they lead to about half of what all components do.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from guerdon.claims.core import Check, Claim, Mutation, above, check, equal, every_seed, paired
from guerdon.claims.testbeds.tabular import History, Tabular
from guerdon.rewards.sql import SqlSchemaLinking, sql_execution
from guerdon.rewards.sql_partial import SqlJudge, sql_ngrams, sql_syntax, tag_boundaries
from guerdon.tasks.text_to_sql import TextToSQL

PLACES: tuple[tuple[str, ...], ...] = (
    ("singer", "album", "stadium"),
    ("name", "title", "COUNT(*)", "MAX(id)"),
    ("age", "songs", "year", "sales", "seats"),
    (">", "<"),
    ("30", "60", "400", "2000"),
)
GOLDS = (
    (0, 0, 0, 0, 0),
    (0, 2, 0, 1, 1),
    (0, 0, 1, 0, 1),
    (0, 3, 1, 1, 0),
    (1, 1, 2, 0, 3),
    (1, 2, 3, 0, 2),
    (1, 1, 3, 1, 2),
    (2, 0, 4, 0, 2),
)
START, STEPS, GROUP, RATE = 0.005, 300, 6, 8.0  # the group of the source
EXAMPLE = "SELECT name FROM singer WHERE age > 30 AND country = 'France'"


@functools.cache
def known() -> dict[str, str]:
    """Where the database is."""
    return {"database": str(TextToSQL().database)}


class Parts(NamedTuple):
    """What is under test: components that each score a text, given the reference."""

    execution: Callable[[str, str], float]
    syntax: Callable[[str, str], float]
    schema: Callable[[str, str], float]
    ngrams: Callable[[str, str], float]
    form: Callable[[str, str], float]

    def each(self, text: str, gold: str) -> list[float]:
        """The components with the weights of the source."""
        weighted = zip((3.0, 1.0, 1.0, 1.0, 1.0), self, strict=True)
        return [weight * part(text, gold) for weight, part in weighted]


def nothing(text: str, gold: str) -> float:
    """A component that never pays."""
    return 0.0


RECALL = SqlSchemaLinking(measure="recall")
PUBLISHED = Parts(
    execution=lambda text, gold: sql_execution(text, gold, known(), rows="set").value,
    syntax=lambda text, gold: sql_syntax(text, known()).value,
    schema=lambda text, gold: RECALL(text, gold).value,
    ngrams=lambda text, gold: sql_ngrams(text, gold).value,
    form=lambda text, gold: tag_boundaries(text).value,
)
ALONE = Parts(PUBLISHED.execution, nothing, nothing, nothing, nothing)


def written(words: tuple[int, ...]) -> str:
    """The query of the words at the five places."""
    table, column, number, sign, value = (place[word] for place, word in zip(PLACES, words, strict=True))
    return f"SELECT {column} FROM {table} WHERE {number} {sign} {value}"


def framed(query: str) -> str:
    """A completion as the source asks for it."""
    return f"<reasoning>\nso\n</reasoning>\n<answer>\n```sql\n{query}\n```\n</answer>"


def initial() -> Tensor:
    """(8,5,5) words at the start: a little more likely where the reference has them, so that it has its chance."""
    sizes = torch.tensor([len(place) for place in PLACES], dtype=torch.float64)
    lean = (START * sizes.prod()) ** (1 / len(PLACES))
    table = torch.zeros(len(GOLDS), len(PLACES), int(sizes.max()), dtype=torch.float64)
    for prompt, gold in enumerate(GOLDS):
        for place, word in enumerate(gold):
            size = len(PLACES[place])
            likely = float(lean) / size
            table[prompt, place, :size] = (1 - likely) / (size - 1)
            table[prompt, place, word] = likely
    return table


class Bench:
    """What every query earns for every question: components (8,480,K)."""

    def __init__(self, method: Parts) -> None:
        self.words = list(product(*(range(len(place)) for place in PLACES)))
        self.index = torch.full((5,) * len(PLACES), -1)
        for row, words in enumerate(self.words):
            self.index[words] = row
        texts = [framed(written(words)) for words in self.words]
        golds = [written(gold) for gold in GOLDS]
        self.components = torch.tensor([[method.each(text, gold) for text in texts] for gold in golds]).double()

    def chance(self, history: History, right: Tensor) -> Tensor:
        """(steps + 1,S) probability of a right query, of ``right`` (8,480), on average over the questions."""
        whole = torch.ones(1, dtype=torch.float64)
        for place, column in enumerate(torch.tensor(self.words).T):
            whole = whole * history.probs[:, :, :, place][..., column]
        return (whole * right).sum(dim=-1).mean(dim=-1)

    def train(self, seeds: int, components: Tensor) -> History:
        """GRPO on the sum of components (8,480,K)."""

        def reward(actions: Tensor, prompt: Tensor) -> Tensor:
            return components[prompt, self.index[tuple(actions.T)]]

        return Tabular(initial(), reward).train(seeds=seeds, steps=STEPS, group_size=GROUP, lr=RATE)


def asked(judge: Any, *queries: str) -> list[float]:
    """What the judge's component gives to queries that should be the example."""
    scores, _ = judge(["who?"] * len(queries), list(queries), [EXAMPLE] * len(queries), [known()] * len(queries))
    return [score.value for score in scores if not isinstance(score, Exception)]


def run(method: Parts, seeds: int) -> Iterator[Check]:
    """Queries by hand, the judge's bounds, then the grammar."""
    near, other, broken = EXAMPLE.replace("France", "Kenya"), "SELECT year FROM album", "SELECT name FROM singers"
    sums = [sum(method.each(framed(query), EXAMPLE)) for query in (EXAMPLE, near, other, broken)]
    yield equal("the reference query", method.each(framed(EXAMPLE), EXAMPLE), [3, 1, 1, 1, 0.5])
    parts = method.each(framed(near), EXAMPLE)
    yield equal("a wrong value: rows, syntax and schema", parts[:3], [0, 1, 1])
    yield check("its runs of words in common", 0.4 < parts[3] < 1, expected="between 0.4 and 1", seen=f"{parts[3]:.3g}")
    yield equal("a table that is not there: rows and syntax", method.each(framed(broken), EXAMPLE)[:2], [0, 0])
    yield check(
        "reference > near miss > unrelated > broken",
        sums == sorted(set(sums), reverse=True),
        expected="strictly falling",
        seen=[round(value, 3) for value in sums],
    )
    everything = "SELECT name, country, age, songs, title, genre, year, sales FROM singer, album"
    named = [SqlSchemaLinking(measure=kind)(everything, EXAMPLE).value for kind in ("recall", "jaccard")]
    yield equal("naming every column, under recall (the hack) and under jaccard", named, [1.0, 0.4])
    judge = SqlJudge(judge={"backend": "scripted", "truth": lambda prompt, text, statement: 1.0})
    yield equal(
        "the judge's best word on: reference, near miss, broken", asked(judge, EXAMPLE, near, broken), [0, 2, 0]
    )
    yield equal("and how often he was asked", judge.judge.stats()["questions"], 1.0)

    bench = Bench(method)
    gold = bench.index[tuple(torch.tensor(GOLDS).T)]
    reference = torch.zeros_like(bench.components[..., 0]).scatter(1, gold.unsqueeze(1), 1.0)
    right = (bench.components[..., 0] > 0).double()
    ours = bench.train(seeds, bench.components)
    theirs = bench.train(seeds, bench.components[..., :1])
    yield equal("chance of the reference query at first", bench.chance(ours, reference)[0].mean(), START, tol=1e-6)
    yield above("queries that do not run", float((bench.components[0, :, 1] == 0).double().mean()), 0.7)
    curves = [bench.chance(history, right) for history in (ours, theirs)]
    yield every_seed("execution accuracy after training with partial rewards", curves[0][-1], above=0.9)
    yield paired(
        "steps to an execution accuracy of 0.9",
        History.first(curves[0], 0.9),
        History.first(curves[1], 0.9),
        better="lower",
        share=1.0,
        curves={"all components": curves[0].T, "rows alone": curves[1].T},
        axis="execution accuracy by step",
    )


CLAIM = Claim(
    system="reasoning-sql",
    run=run,
    method=PUBLISHED,
    mutation=Mutation("only the rows count", ALONE),
    recipe="""
task: {name: text_to_sql}
rewards:
  - {name: task, weight: 3}
  - sql_syntax
  - {name: sql_schema_linking, measure: recall}
  - sql_ngrams
  - tag_boundaries
sampling: {prompts: 64, group_size: 6, max_new_tokens: 120}
""",
    seeds=5,
)
