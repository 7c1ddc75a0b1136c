"""Questions over a knowledge graph that take several steps, and a search engine for its triples and passages."""

from __future__ import annotations

import functools
import math
from collections.abc import Hashable, Iterable, Sequence
from typing import Annotated, Any, ClassVar, NamedTuple

import networkx as nx
import numpy as np
from pydantic import Field

from guerdon.errors import RecipeError, TaskError
from guerdon.registry import register
from guerdon.rewards.process import ANSWER, DOCUMENTS, QUERY, Marks, cost_aware_f1
from guerdon.seeding import derive, numpy_generator
from guerdon.tasks.base import Kind, Problem, Task

Fact = tuple[str, str, str]  # head, relation, tail


class Found(NamedTuple):
    """What a search returned, best first.

    Attributes:
        triples: heads, relations and tails.
        passages: texts.
    """

    triples: list[Fact]
    passages: list[str]

    def __str__(self) -> str:
        """One a line, triples first."""
        return "\n".join([*(" ".join(triple) for triple in self.triples), *self.passages])


class KnowledgeGraph:
    """A graph of entities and passages, searched by personalised PageRank from the entities that a query names.

    score of an entity or passage = mean over the named entities e of PageRank that restarts at e
    score of a triple = score of its head, + half of its tail's, + share of its relation's words in the query

    Entities of a triple are neighbours, and so are a passage and the entities that it names. A query that names no
    entity finds nothing.

    Args:
        triples: head, relation and tail of each.
        passages: texts, which name entities as triples do.
        damping: chance that a walk goes on rather than restarts.

    Source: Haveliwala 2002 (personalised PageRank); Gutiérrez et al. 2024, arXiv 2405.14831 (HippoRAG), for search with
        it; Yu et al. 2025, arXiv 2507.23581 (GraphRAG-R1), whose server returns triples beside passages.
    """

    def __init__(self, triples: Iterable[Fact], passages: Sequence[str] = (), *, damping: float = 0.85) -> None:
        self.triples, self.passages, self.damping = list(triples), list(passages), damping
        graph: nx.Graph[Hashable] = nx.Graph()
        graph.add_edges_from((head, tail) for head, _, tail in self.triples)
        entities = list(graph)
        self._entity_words = {entity: _words(str(entity)) for entity in entities}
        for place, passage in enumerate(self.passages):
            graph.add_node(place)
            graph.add_edges_from((place, entity) for entity in self.named(passage))
        self.graph = graph
        self._place = {node: i for i, node in enumerate(graph)}
        self._ranks: dict[Hashable, np.ndarray] = {}

    def named(self, text: str) -> list[str]:
        """The entities whose words stand next to one another in a text."""
        words = f" {' '.join(_words(text))} "
        return [str(e) for e, name in self._entity_words.items() if f" {' '.join(name)} " in words]

    def rank(self, entities: Sequence[str]) -> dict[Hashable, float]:
        """PageRank of every entity and passage, walks restarting at one of the given entities, each as often."""
        total = sum((self._rank(entity) for entity in entities), np.zeros(len(self.graph))) / max(len(entities), 1)
        return {node: float(total[i]) for node, i in self._place.items()}

    def search(self, query: str, *, triples: int = 3, passages: int = 1) -> Found:
        """The best triples and passages for a query.

        Args:
            query: names entities, and perhaps relations.
            triples, passages: how many of each.
        """
        entities = self.named(query)
        if not entities:
            return Found([], [])
        score, asked = self.rank(entities), set(_words(query))

        def worth(triple: Fact) -> float:
            relation = _words(triple[1])
            shared = sum(word in asked for word in relation) / max(len(relation), 1)
            return score[triple[0]] + score[triple[2]] / 2 + shared

        best = sorted(range(len(self.passages)), key=lambda place: -score[place])[:passages]
        return Found(sorted(self.triples, key=lambda t: -worth(t))[:triples], [self.passages[place] for place in best])

    def _rank(self, entity: str) -> np.ndarray:
        if entity not in self._ranks:
            found = nx.pagerank(self.graph, alpha=self.damping, personalization={entity: 1.0}, tol=1e-10, max_iter=500)
            self._ranks[entity] = np.array([found[node] for node in self._place])
        return self._ranks[entity]


@register("task", "graph_qa")
class GraphQA(Task):
    """Questions about a generated graph, where every relation leads from one entity to another.

    ``ba boss friend?`` asks for the friend of the boss of ba: hop by hop, for no fact joins the ends. The answer is an
    entity; ``metadata`` holds the ``hops``, the ``triples`` on the way and, for reward ``graph_reasoning``, ``graphs``.
    The task answers queries by ``respond``, as ``sampling.tool`` asks them, and its scorer is F1 of words between the
    marks of an answer. Demonstrations follow the path with one query per hop, or guess after too few.

    Held-out questions are others than those of training, about the same graph.
    """

    kind: ClassVar[Kind] = "language"
    supplies: ClassVar[frozenset[str]] = frozenset({"answer", "metadata"})

    def __init__(
        self,
        *,
        hops: Annotated[list[int], Field(min_length=1)] = [1, 2],  # noqa: B006 - a recipe's list, never changed
        entities: Annotated[int, Field(ge=3)] = 24,
        relations: Annotated[list[str], Field(min_length=1)] = ["boss", "friend", "pupil", "rival"],  # noqa: B006
        triples: Annotated[int, Field(ge=1)] = 1,
        passages: Annotated[int, Field(ge=0)] = 0,
        eval_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2,
        shallow: Annotated[float, Field(ge=0, le=1)] = 0.0,
        query: Marks = QUERY,
        documents: Marks = DOCUMENTS,
        answer_in: Marks = ANSWER,
        graph_seed: int = 0,
    ) -> None:
        """Generate the graph and all of its questions.

        Args:
            hops: how many facts a question takes; drawn evenly.
            entities: number of entities.
            relations: names of the relations; each is a permutation of the entities without fixed points.
            triples, passages: how many of each ``respond`` returns. A passage holds all facts about one entity.
            eval_fraction: share of the questions of each number of hops that are held out.
            shallow: share of demonstrations that guess after too few queries.
            query, documents, answer_in: marks of demonstrations; those of ``sampling.tool`` should be the same.
            graph_seed: of the graph, whatever the run's seed.

        Raises:
            RecipeError: for fewer than one hop.
        """
        if min(hops) < 1:
            raise RecipeError(f"task 'graph_qa': hops are {hops}, want whole numbers from 1 on")
        self.hops, self.relations, self.shallow = sorted(set(hops)), list(relations), shallow
        self.query, self.documents, self.answer_in = query, documents, answer_in
        self._returned = {"triples": triples, "passages": passages}
        self.entities = _names(entities)
        random = numpy_generator(graph_seed, "graph_qa")
        self.facts: dict[tuple[str, str], str] = {}
        for relation in self.relations:
            order = random.permutation(entities)  # a single cycle, so that no entity leads to itself
            for head, tail in zip(order, np.roll(order, -1), strict=True):
                self.facts[self.entities[head], relation] = self.entities[tail]
        known = [(head, relation, self.facts[head, relation]) for head in self.entities for relation in self.relations]
        about = [f"{e}: {', '.join(f'{r} {self.facts[e, r]}' for r in self.relations)}" for e in self.entities]
        self.graph = KnowledgeGraph(known, about if passages else ())
        self.scorer = functools.partial(
            cost_aware_f1, scale=1.0, cost=0.0, query=query, documents=documents, answer_in=answer_in
        )
        self._train, self._held_out = self._split(eval_fraction, graph_seed)

    def respond(self, queries: Sequence[str]) -> list[str]:
        """What the graph holds for each query; an empty text where it names no entity."""
        return [self._answer(query) for query in queries]

    def train_batch(self, n: int, seed: int) -> list[Problem]:
        """Draw ``n`` questions with replacement, every number of hops as often; a pure function of ``seed``."""
        random = numpy_generator(seed, "graph_qa")
        out = []
        for _ in range(n):
            kind = self._train[self.hops[random.integers(len(self.hops))]]
            path = kind[random.integers(len(kind))]
            out.append(self._problem(path, self._demonstration(path, random)))
        return out

    def eval_problems(self, n: int) -> list[Problem]:
        """The first ``n`` held-out questions, numbers of hops in turn.

        Raises:
            TaskError: when fewer than ``n`` are held out.
        """
        most = min(map(len, self._held_out.values())) * len(self.hops)
        if n > most:
            raise TaskError(
                f"task 'graph_qa' holds out {most} questions, {n} were asked for; ask for fewer, or raise "
                "'eval_fraction' or 'entities'"
            )
        count = len(self.hops)
        return [self._problem(self._held_out[self.hops[i % count]][i // count]) for i in range(n)]

    def corpus(self) -> Iterable[str]:
        """All facts, the marks, and questions with their demonstrations."""
        yield from (" ".join(triple) for triple in self.graph.triples)
        yield from self.graph.passages
        yield "".join([*self.query, *self.documents, *self.answer_in, "\n"])
        for problem in self.train_batch(256, seed=0):
            yield problem.prompt
            yield "".join(problem.demonstration)

    def _answer(self, query: str) -> str:
        return self._searched(" ".join(_words(query)))

    @functools.cached_property
    def _searched(self) -> Any:
        return functools.lru_cache(maxsize=100_000)(lambda query: str(self.graph.search(query, **self._returned)))

    def _split(self, fraction: float, seed: int) -> tuple[dict[int, list[_Path]], dict[int, list[_Path]]]:
        train, held_out = {}, {}
        for hops in self.hops:
            paths = self._paths(hops)
            paths.sort(key=lambda path: derive(seed, "held out", *path))
            size = max(1, round(fraction * len(paths)))
            held_out[hops], train[hops] = paths[:size], paths[size:]
        return train, held_out

    def _paths(self, hops: int) -> list[_Path]:
        """A start and its relations, for every path that comes by no entity twice."""
        paths = [((head,), (head,)) for head in self.entities]
        for _ in range(hops):
            paths = [
                ((*path, relation), (*seen, self.facts[seen[-1], relation]))
                for path, seen in paths
                for relation in self.relations
                if self.facts[seen[-1], relation] not in seen
            ]
        return [path for path, _ in paths]

    def _walk(self, path: _Path) -> list[Fact]:
        at, out = path[0], []
        for relation in path[1:]:
            out.append((at, relation, self.facts[at, relation]))
            at = out[-1][2]
        return out

    def _problem(self, path: _Path, demonstration: tuple[str, ...] = ()) -> Problem:
        walked = self._walk(path)
        text = "\n".join(" -> ".join(triple) for triple in walked)
        known = {"hops": len(walked), "triples": [list(triple) for triple in walked]}
        known |= {"graphs": [{"triples": known["triples"], "text": text}]}
        prompt = f"{' '.join(path)}?"
        return Problem(derive(0, prompt), prompt, walked[-1][2], metadata=known, demonstration=demonstration)

    def _demonstration(self, path: _Path, random: np.random.Generator) -> tuple[str, ...]:
        walked = self._walk(path)
        calls, answer = len(walked), walked[-1][2]
        if random.random() < self.shallow:
            calls = int(random.integers(len(walked)))
            answer = self.entities[random.integers(len(self.entities))]
        pieces = []
        for head, relation, _ in walked[:calls]:
            asked = f"{head} {relation}"
            pieces += [asked.join(self.query), self._answer(asked).join(self.documents)]
        return (*pieces, answer.join(self.answer_in))


_Path = tuple[str, ...]  # an entity, and relations


def _words(text: str) -> list[str]:
    return "".join(c if c.isalnum() else " " for c in text.casefold()).split()


def _names(count: int) -> list[str]:
    """So many names of one syllable or more, each as long."""
    syllables = [a + b for a in "bcdfghjklmnpqrstvwxz" for b in "aeiou"]
    length = max(1, math.ceil(math.log(count, len(syllables)) - 1e-9))
    return ["".join(syllables[i // len(syllables) ** d % len(syllables)] for d in range(length)) for i in range(count)]
