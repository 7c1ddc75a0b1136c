"""Tasks of agents with a tool: questions that take several searches, and calculations that take a program."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Annotated, Any, NamedTuple

import numpy as np
from pydantic import Field

from guerdon.errors import RecipeError, TaskError
from guerdon.registry import register
from guerdon.sandbox import Limits, run_python
from guerdon.seeding import derive, numpy_generator
from guerdon.tasks.base import Problem
from guerdon.tasks.environments import EnvironmentTask, Seconds, Turns
from guerdon.tasks.knowledge_graph import GraphQA
from guerdon.tasks.tools import Form, ToolEnvironment

Share = Annotated[float, Field(ge=0, le=1)]


class Passage(NamedTuple):
    """A text and what it is about, whose words count twice."""

    title: str
    text: str


@functools.lru_cache(maxsize=4)
def _index(passages: tuple[Passage, ...]) -> Any:
    import bm25s

    index = bm25s.BM25()
    words = [f"{passage.title} {passage.text}" for passage in passages]
    index.index(bm25s.tokenize(words, stopwords=[], show_progress=False), show_progress=False)
    return index


def bm25(passages: Sequence[Passage], query: str, top: int) -> list[str]:
    """Texts of the passages that match a query best by BM25, best first; none where no word matches.

    Raises:
        RecipeError: when bm25s is not installed.

    Source: Lù 2024, arXiv 2407.03618 (bm25s); Robertson et al. 1994 (BM25).
    """
    try:
        import bm25s  # noqa: F401
    except ImportError:
        raise RecipeError('search needs the package bm25s; pip install "guerdon[agents]"') from None
    return _found(_index(tuple(passages)), passages, query, top)


def _found(index: Any, passages: Sequence[Passage], query: str, top: int) -> list[str]:
    import bm25s

    words = bm25s.tokenize(query, stopwords=[], return_ids=False, show_progress=False)[0]
    known = [word for word in words if word in index.vocab_dict]
    if not known:
        return []
    found, score = index.retrieve([known], k=min(top, len(passages)), show_progress=False)
    return [passages[int(place)].text for place, worth in zip(found[0], score[0], strict=True) if worth > 0]


def search_tools(passages: tuple[Passage, ...], top: int) -> list[Callable[..., str]]:
    """A search engine for passages, as the tools of a ``ToolEnvironment``."""
    index = _index(passages)

    def search(query: str) -> str:
        """Find passages that match a query."""
        return " ".join(_found(index, passages, query, top)) or "nothing found"

    return [search]


def exact_answer(text: str, answer: Any) -> float:
    """Whether a text has the words of the answer."""
    return float(text.split() == str(answer).split())


class SearchTask(EnvironmentTask):
    """Questions that are answered by searching passages; subclasses make both.

    Attributes:
        passages: what is searched.
        top: passages of a result.
        cost: taken off for every search.
        form: of calls, see ``ToolEnvironment``.
    """

    supplies = EnvironmentTask.supplies | {"answer", "metadata"}
    answer_form = "answer {}"
    passages: tuple[Passage, ...]
    top: int
    cost: float
    form: Form

    def environment(self) -> Callable[[], ToolEnvironment]:
        """A question with a search engine."""
        return partial(
            ToolEnvironment,
            partial(search_tools, self.passages, self.top),
            exact_answer,
            form=self.form,
            cost=self.cost,
        )


@register("task", name="search")
class Search(SearchTask):
    """Questions whose answer takes one search per hop: a turn is ``search QUERY`` or ``answer TEXT``.

    ``ba boss friend ?`` asks for the friend of the boss of ba. Passages are one fact each, ``ba boss ce .``, found by
    BM25 with the first entity as their title; no passage joins the ends of a question. Graph, questions and their split
    are those of ``graph_qa``. A right answer pays 1.

    Args:
        hops: how many facts a question takes.
        entities, relations: of the graph.
        top: passages of a result.
        shallow: share of demonstrations that guess after too few searches.
        cost: taken off for every search.
        eval_fraction: share of the questions that are held out.
        graph_seed: of the graph, whatever the run's seed.
        form: of calls, see ``ToolEnvironment``; demonstrations are lines.
        max_turns, workers, timeout: see ``EnvironmentTask``.
    """

    def __init__(
        self,
        *,
        hops: Annotated[list[int], Field(min_length=1)] = [2],  # noqa: B006 - a recipe's list, never changed
        entities: Annotated[int, Field(ge=3)] = 20,
        relations: Annotated[list[str], Field(min_length=1)] = ["boss", "friend", "pupil"],  # noqa: B006
        top: Annotated[int, Field(ge=1)] = 1,
        shallow: Share = 0.5,
        cost: float = 0.0,
        eval_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.3,
        graph_seed: int = 0,
        form: Form = "line",
        max_turns: Turns = 4,
        workers: int = 0,
        timeout: Seconds = 60.0,
    ) -> None:
        super().__init__(max_turns=max_turns, workers=workers, timeout=timeout)
        self._graph = GraphQA(
            hops=hops, entities=entities, relations=relations, eval_fraction=eval_fraction, graph_seed=graph_seed
        )
        self.passages = tuple(Passage(fact[0], f"{' '.join(fact)} .") for fact in self._graph.graph.triples)
        self.top, self.shallow, self.cost, self.form = top, shallow, cost, form
        bm25(self.passages, "", 1)

    def train_batch(self, n: int, seed: int) -> list[Problem]:
        """Questions drawn with replacement, every number of hops as often, each with a demonstration."""
        random = numpy_generator(seed, "search")
        return [self._problem(problem, random) for problem in self._graph.train_batch(n, seed)]

    def eval_problems(self, n: int) -> list[Problem]:
        """Held-out questions, numbers of hops in turn."""
        random = numpy_generator(0, "search", "held out")
        return [self._problem(problem, random) for problem in self._graph.eval_problems(n)]

    def corpus(self) -> Iterable[str]:
        """All passages, and what turns are made of."""
        yield from (passage.text for passage in self.passages)
        yield "search answer ? nothing found error: neither a tool nor an answer"

    def _problem(self, of: Problem, random: np.random.Generator) -> Problem:
        facts: list[list[str]] = of.metadata["triples"]
        calls, answer = len(facts), str(of.answer)
        if random.random() < self.shallow:
            calls = int(random.integers(len(facts)))
            answer = str(random.choice(self._graph.entities))
        said: list[str] = []
        search = search_tools(self.passages, self.top)[0]
        for head, relation, _ in facts[:calls]:
            said += [f"search {head} {relation}", search(f"{head} {relation}")]
        prompt = of.prompt.replace("?", " ?")
        known = {"hops": len(facts), "triples": facts}
        return Problem(of.task_id, prompt, of.answer, metadata=known, episode=(*said, f"answer {answer}"))


def python_tools() -> list[Callable[..., str]]:
    """An interpreter in the sandbox, as the tools of a ``ToolEnvironment``."""

    def python(code: str) -> str:
        """Run a Python program in the sandbox; what it prints, or its error."""
        out = run_python(code, limits=Limits(wall_time=5.0))
        said = out.stdout.strip() or out.stderr.strip().rpartition("\n")[2]
        return said or f"no output ({out.status})"

    return [python]


OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul}


@register("task", name="python_agent")
class PythonAgent(EnvironmentTask):
    """Calculations too long for the head: a turn is ``python PROGRAM``, run in the sandbox, or ``answer NUMBER``.

    ``37 * 48 + 12 ?`` asks for a value; the program ``print( 37 * 48 + 12 )`` prints it. A right answer pays 1.

    Args:
        terms: numbers of an expression.
        digits: most digits of each.
        skill: share of demonstrations that run the program; others guess.
        cost: taken off for every run.
        form: of calls, see ``ToolEnvironment``; demonstrations are lines.
        max_turns, workers, timeout: see ``EnvironmentTask``.
    """

    supplies = EnvironmentTask.supplies | {"answer", "metadata"}
    answer_form = "answer {}"

    def __init__(
        self,
        *,
        terms: Annotated[int, Field(ge=2)] = 3,
        digits: Annotated[int, Field(ge=1)] = 2,
        skill: Share = 0.3,
        cost: float = 0.0,
        form: Form = "line",
        max_turns: Turns = 3,
        workers: int = 0,
        timeout: Seconds = 60.0,
    ) -> None:
        super().__init__(max_turns=max_turns, workers=workers, timeout=timeout)
        self.terms, self.digits, self.skill, self.cost = terms, digits, skill, cost
        self.form: Form = form

    def environment(self) -> Callable[[], ToolEnvironment]:
        """A question with an interpreter."""
        return partial(ToolEnvironment, python_tools, exact_answer, form=self.form, cost=self.cost)

    def train_batch(self, n: int, seed: int) -> list[Problem]:
        """Expressions that are not held out."""
        return self._drawn(n, numpy_generator(seed, "python_agent"), held_out=False)

    def eval_problems(self, n: int) -> list[Problem]:
        """Held-out expressions, one in five."""
        return self._drawn(n, numpy_generator(0, "python_agent", "held out"), held_out=True)

    def corpus(self) -> Iterable[str]:
        """Every character of expressions and turns."""
        yield "0123456789+-* ?()print.:python answer "
        yield "error: neither a tool nor an answer no output (ok) SyntaxError NameError TypeError ValueError"

    def _drawn(self, n: int, random: np.random.Generator, *, held_out: bool) -> list[Problem]:
        drawn: dict[int, Problem] = {}
        for _ in range(100 * n + 1000):
            problem = self._problem(random)
            if (problem.task_id % 5 == 0) == held_out:
                drawn.setdefault(problem.task_id, problem)
            if len(drawn) == n:
                return list(drawn.values())
        raise TaskError(f"task 'python_agent' has fewer than {n} different expressions; raise 'terms' or 'digits'")

    def _problem(self, random: np.random.Generator) -> Problem:
        numbers = [str(x) for x in random.integers(1, 10**self.digits, size=self.terms)]
        between = random.choice(list(OPERATORS), size=self.terms - 1).tolist()
        text = " ".join([numbers[0], *(f"{sign} {number}" for sign, number in zip(between, numbers[1:], strict=True))])
        answer = _value(numbers, between)
        runs = random.random() < self.skill
        guess = answer if runs else str(random.integers(1, 10**self.digits))
        said = (f"python print({text})", answer) if runs else ()
        return Problem(
            derive(0, "python_agent", text), f"{text} ?", answer, metadata={}, episode=(*said, f"answer {guess}")
        )


def _value(numbers: Sequence[str], between: Sequence[str]) -> str:
    """Value of an expression: products first."""
    sums = [int(numbers[0])]
    for sign, number in zip(between, numbers[1:], strict=True):
        if sign == "*":
            sums[-1] *= int(number)
        else:
            sums.append(OPERATORS[sign](0, int(number)))
    return str(sum(sums))
