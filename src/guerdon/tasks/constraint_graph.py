"""Questions that constrain an unknown from several sides, made as hard as asked for.

A question is a graph: its nodes are one named entity and unknowns, its edges facts that must hold. Two numbers say how
hard it is: the treewidth, how many unknowns have to be held in mind at once, and the dispersion, how many documents it
takes to see all facts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Annotated, NamedTuple

import networkx as nx
import numpy as np
from pydantic import Field

from guerdon.errors import TaskError
from guerdon.registry import register
from guerdon.seeding import derive, numpy_generator
from guerdon.tasks.agents import Passage, SearchTask, Share, bm25, search_tools
from guerdon.tasks.base import Problem
from guerdon.tasks.environments import Seconds, Turns
from guerdon.tasks.knowledge_graph import Fact, _names
from guerdon.tasks.tools import Form

LARGEST = 14  # nodes of a graph whose treewidth is computed, which takes 2^nodes steps
Width = Annotated[int, Field(ge=1, le=3)]


def treewidth(graph: nx.Graph) -> int:
    """Treewidth of a small graph, exactly: 1 for a chain or tree, 2 for a cycle, n - 1 for a clique.

    min over orders of the nodes of max over v of |{w after v : w is reached from v through nodes before v}|

    Args:
        graph: at most 14 nodes.

    Raises:
        ValueError: when it has more.

    Source: Bodlaender et al. 2006 (dynamic programming over elimination orders).
    """
    nodes = list(graph)
    if len(nodes) > LARGEST:
        raise ValueError(f"treewidth: the graph has {len(nodes)} nodes, wanted at most {LARGEST}; bound it instead")
    place = {node: i for i, node in enumerate(nodes)}
    near = [sum(1 << place[w] for w in graph.neighbors(v) if w != v) for v in nodes]

    def later(before: int, v: int) -> int:
        """How many nodes outside of ``before`` are reached from v through it."""
        seen, front = 1 << v, near[v]
        while front & ~seen:
            new = front & ~seen
            seen |= new
            for i in range(len(nodes)):
                if new >> i & 1 and before >> i & 1:
                    front |= near[i]
        return (seen & ~before & ~(1 << v)).bit_count()

    best = [0] * (1 << len(nodes))
    for subset in range(1, len(best)):
        members = [v for v in range(len(nodes)) if subset >> v & 1]
        best[subset] = min(max(best[subset ^ 1 << v], later(subset ^ 1 << v, v)) for v in members)
    return best[-1]


def source_dispersion(facts: Iterable[Fact], documents: Sequence[Iterable[Fact]]) -> int:
    """Smallest number of documents that together hold all facts; 0 for no facts.

    Documents count by the facts that they state, in whatever words: a paraphrase is the same source twice, and a page
    that sums up others lowers the dispersion of what they hold.

    Args:
        facts: what a question needs.
        documents: the facts of each.

    Raises:
        ValueError: when a fact stands in no document.

    Source: REDSearcher 2026, arXiv 2602.14234 (minimum source dispersion).
    """
    needed = frozenset(facts)
    held = {kept for document in documents if (kept := needed & frozenset(document))}
    useful = [one for one in held if not any(one < other for other in held)]
    missing = needed - frozenset().union(*useful) if useful else needed
    if missing:
        raise ValueError(f"source_dispersion: no document states {sorted(missing)[0]}; add one, or leave the fact out")
    for size in range(len(useful) + 1):
        if any(needed <= frozenset().union(*some) for some in combinations(useful, size)):
            return size
    return len(useful)


def solutions(constraints: Sequence[Fact], facts: Iterable[Fact]) -> list[dict[str, str]]:
    """All ways to fill in the unknowns so that every constraint is a fact.

    Args:
        constraints: head, relation and tail; a name that begins with ``?`` is unknown.
        facts: what is true.
    """
    by_relation: dict[str, list[Fact]] = {}
    for fact in sorted(set(facts)):
        by_relation.setdefault(fact[1], []).append(fact)
    found: list[dict[str, str]] = [{}]
    for head, relation, tail in constraints:
        grown = []
        for known in found:
            for one, _, other in by_relation.get(relation, []):
                bound = _bound(_bound(known, head, one), tail, other)
                if bound is not None:
                    grown.append(bound)
        found = grown
    return found


def _bound(known: dict[str, str] | None, name: str, entity: str) -> dict[str, str] | None:
    if known is None or known.get(name, entity if name.startswith("?") else name) != entity:
        return None
    return known | {name: entity} if name.startswith("?") else known


class Puzzle(NamedTuple):
    """A question, and the documents of which it can be answered.

    Attributes:
        constraints: what must hold, between the named entity and unknowns.
        asked: the unknown that is asked for.
        answer: the entity that it stands for.
        needed: the facts that the constraints become.
        evidence: the facts of each document that has some of them.
        distractors: the facts of each further document; none names the answer.
    """

    constraints: tuple[Fact, ...]
    asked: str
    answer: str
    needed: tuple[Fact, ...]
    evidence: tuple[tuple[Fact, ...], ...]
    distractors: tuple[tuple[Fact, ...], ...]

    @property
    def graph(self) -> nx.Graph:
        """The constraint graph."""
        return nx.Graph([(head, tail) for head, _, tail in self.constraints])

    @property
    def text(self) -> str:
        """The question."""
        return f"{' , '.join(' '.join(fact) for fact in self.constraints)} : {self.asked}"


_SHAPES: dict[int, tuple[tuple[int, int], ...]] = {
    2: ((0, 1), (1, 2), (2, 3), (3, 0)),  # a cycle
    3: ((0, 1), (1, 2), (2, 3), (3, 0), (0, 2), (1, 3)),  # a clique of four
}


def constraint_puzzle(
    names: Sequence[str],
    relations: Sequence[str],
    random: np.random.Generator,
    *,
    width: int = 2,
    dispersion: int = 3,
    decoys: int = 2,
) -> Puzzle:
    """Make a question of a given treewidth whose facts are spread over a given number of documents.

    Width 1 is a chain from the named entity, 2 a cycle of four through it, 3 a clique of four. From the second on the
    named entity has decoys by the same relation, which lead on as the answer's side does, and only the constraints that
    close the cycle tell them apart; so the first that fits is mostly wrong. Those of a chain have other relations. No
    document of theirs names the answer, and it is checked that exactly one entity can be the answer.

    Args:
        names: entities to use, all different; none is used for anything else in the documents.
        relations: four at least.
        random: draws.
        width: treewidth k.
        dispersion: documents M; a chain has as many facts as that, two at least, a cycle four and a clique six.
        decoys: wrong ways from the named entity.

    Raises:
        TaskError: when there are more documents than facts, or too few names or relations.

    Source: REDSearcher 2026, arXiv 2602.14234. Shapes and decoys are ours.
    """
    length = max(2, dispersion)
    edges = _SHAPES.get(width) or tuple((i, i + 1) for i in range(length))
    nodes = 1 + max(max(edge) for edge in edges)
    asked = nodes - 1 if width == 1 else 2
    if not 1 <= dispersion <= len(edges):
        raise TaskError(
            f"a question of width {width} has {len(edges)} facts; 'dispersion' is {dispersion}, wanted 1 to that"
        )
    wanted = nodes + decoys * asked
    if len(names) < wanted or len(relations) < 4:
        raise TaskError(
            f"a question of width {width} with {decoys} decoys takes {wanted} names and 4 relations, got {len(names)} "
            f"and {len(relations)}"
        )
    order = [str(x) for x in random.permutation(np.array(names, dtype=object))]
    labels = [str(x) for x in random.permutation(np.array(relations, dtype=object))]
    kinds = [labels[i % len(labels)] for i in range(len(edges))]
    # Decoys of a chain hang on relations that it doesn't ask for, where there are any, or it would have two ends.
    aside = labels[len(edges) :] or labels[1:]
    entities, spare = order[:nodes], iter(order[nodes:])
    needed = tuple((entities[a], kind, entities[b]) for (a, b), kind in zip(edges, kinds, strict=True))
    unknown = [entities[0], *(f"?{chr(ord('a') + i)}" for i in range(nodes - 1))]
    constraints = tuple((unknown[a], kind, unknown[b]) for (a, b), kind in zip(edges, kinds, strict=True))
    wrong = []
    for _ in range(decoys):
        at, path = entities[0], []
        for step in range(asked):
            after = next(spare)
            path.append((at, kinds[step] if width > 1 else aside[step % len(aside)], after))
            at = after
        wrong.append(tuple(path))
    puzzle = Puzzle(
        constraints,
        unknown[asked],
        entities[asked],
        needed,
        tuple(tuple(needed[i] for i in sorted(part)) for part in _partition(len(needed), dispersion, random)),
        tuple(wrong),
    )
    _verified(puzzle, width, dispersion)
    return puzzle


def _partition(count: int, parts: int, random: np.random.Generator) -> list[np.ndarray]:
    """So many numbers in parts, none empty."""
    cuts = np.sort(random.choice(np.arange(1, count), parts - 1, replace=False))
    return np.split(random.permutation(count), cuts)


def _verified(puzzle: Puzzle, width: int, dispersion: int) -> None:
    documents = [*puzzle.evidence, *puzzle.distractors]
    answers = {found[puzzle.asked] for found in solutions(puzzle.constraints, (f for d in documents for f in d))}
    seen = (treewidth(puzzle.graph), source_dispersion(puzzle.needed, documents), answers)
    if seen != (width, dispersion, {puzzle.answer}):
        raise TaskError(
            f"the question '{puzzle.text}' came out with {seen}, wanted {(width, dispersion, puzzle.answer)}"
        )


def page(facts: Iterable[Fact]) -> str:
    """Facts as a text."""
    return " ".join(f"{' '.join(fact)} ." for fact in facts)


@register("task", name="constraint_graph", paper="REDSearcher 2026, arXiv 2602.14234")
class ConstraintGraphQA(SearchTask):
    """Questions with an unknown that several facts constrain; a turn is ``search QUERY`` or ``answer TEXT``.

    ``ba boss ?a , ?a friend ?b , ?b pupil ?c , ?c rival ba : ?b`` asks for ?b. All documents of all questions are one
    corpus, searched by BM25, so that those of other questions distract as well; names belong to one question, and can't
    be known without searching. A right answer pays 1.

    Args:
        widths: treewidths of the questions, in turn.
        dispersion: documents that the facts of a question are spread over.
        decoys: see ``constraint_puzzle``.
        questions: how many there are, for training and evaluation together.
        relations: names of the relations.
        top: documents of a result.
        eval_fraction: share of the questions that are held out.
        graph_seed: of the questions, whatever the run's seed.
        cost, form: see ``ToolEnvironment``; demonstrations are lines.
        max_turns, workers, timeout: see ``EnvironmentTask``.
    """

    def __init__(
        self,
        *,
        widths: Annotated[list[Width], Field(min_length=1)] = [1, 2],  # noqa: B006 - a recipe's list, never changed
        dispersion: Annotated[int, Field(ge=1)] = 2,
        decoys: Annotated[int, Field(ge=0)] = 2,
        questions: Annotated[int, Field(ge=2)] = 100,
        relations: Annotated[list[str], Field(min_length=4)] = ["boss", "friend", "pupil", "rival"],  # noqa: B006
        top: Annotated[int, Field(ge=1)] = 2,
        eval_fraction: Annotated[Share, Field(gt=0, lt=1)] = 0.3,
        graph_seed: int = 0,
        cost: float = 0.0,
        form: Form = "line",
        max_turns: Turns = 8,
        workers: int = 0,
        timeout: Seconds = 60.0,
    ) -> None:
        super().__init__(max_turns=max_turns, workers=workers, timeout=timeout)
        random = numpy_generator(graph_seed, "constraint_graph")
        each = max(dispersion, 2) + 4 + decoys * max(dispersion, 3)
        names = iter(_names(each * questions))
        self.puzzles = [
            constraint_puzzle(
                [next(names) for _ in range(each)],
                relations,
                random,
                width=widths[i % len(widths)],
                dispersion=dispersion,
                decoys=decoys,
            )
            for i in range(questions)
        ]
        pages = [document for puzzle in self.puzzles for document in (*puzzle.evidence, *puzzle.distractors)]
        self.passages = tuple(Passage(facts[0][0], page(facts)) for facts in pages)
        self.held_out = max(1, round(eval_fraction * questions))
        self.top, self.cost, self.form = top, cost, form
        bm25(self.passages, "", 1)

    def train_batch(self, n: int, seed: int) -> list[Problem]:
        """Questions drawn with replacement, each with a demonstration."""
        random = numpy_generator(seed, "constraint_graph", "batch")
        return [self._problem(int(i)) for i in random.integers(self.held_out, len(self.puzzles), size=n)]

    def eval_problems(self, n: int) -> list[Problem]:
        """Held-out questions, widths in turn."""
        if n > self.held_out:
            raise TaskError(
                f"task 'constraint_graph' holds out {self.held_out} questions, {n} were asked for; "
                "raise 'questions' or 'eval_fraction'"
            )
        return [self._problem(i) for i in range(n)]

    def corpus(self) -> Iterable[str]:
        """All documents and questions, and what turns are made of."""
        yield from (passage.text for passage in self.passages)
        yield from (puzzle.text for puzzle in self.puzzles)
        yield "search answer nothing found error: neither a tool nor an answer"

    def _problem(self, number: int) -> Problem:
        puzzle = self.puzzles[number]
        search, said = search_tools(self.passages, self.top)[0], []
        for facts in puzzle.evidence:
            query = f"{facts[0][0]} {facts[0][1]}"
            said += [f"search {query}", search(query)]
        known = {
            "width": treewidth(puzzle.graph),
            "dispersion": len(puzzle.evidence),
            "constraints": [list(fact) for fact in puzzle.constraints],
            "asked": puzzle.asked,
        }
        task_id = derive(0, "constraint_graph", puzzle.text)
        return Problem(task_id, puzzle.text, puzzle.answer, metadata=known, episode=(*said, f"answer {puzzle.answer}"))
