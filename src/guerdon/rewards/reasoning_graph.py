"""Reward of how an answer is reasoned: the graph of a thought beside reference graphs."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import networkx as nx
from pydantic import BeforeValidator, Field, SkipValidation

from guerdon.errors import RewardError
from guerdon.registry import import_object
from guerdon.rewards.extract import reference_texts
from guerdon.rewards.forms import Score, reward
from guerdon.rewards.judges.base import DESCRIBED, Judge, resolve_judge_or_function
from guerdon.rewards.judges.questions import JudgeError, Question, Rating
from guerdon.rewards.ngrams import jaccard, squad_words
from guerdon.rewards.process import (
    ANSWER,
    DOCUMENTS,
    QUERY,
    THINK,
    Marks,
    marked,
    search_format,
    without_documents,
)

GRADES = (0.0, 0.4, 1.0)  # what a wrong, a roughly right and a right answer earn
_PAPER = "Lu et al. 2025, arXiv 2507.23541"
_MOST_TRIPLES, _MOST_PATHS = 200, 10_000


class Triple(NamedTuple):
    """Something said of two entities."""

    head: str
    relation: str
    tail: str


class ReasoningGraph(NamedTuple):
    """How a reference reasons.

    Attributes:
        triples: its graph, at least one.
        text: the reasoning in words.
    """

    triples: list[Triple]
    text: str = ""


class GraphMatch(NamedTuple):
    """How much two reasonings have in common, each in [0,1]; see ``match_graphs``."""

    logic: float
    semantic: float
    entities: float

    @property
    def score(self) -> float:
        """The mean of the three."""
        return (self.logic + self.semantic + self.entities) / 3


Similarity = Callable[[str, str], float]
Extract = Callable[[str], Iterable[Sequence[str]]]
# Given an answer, the right one, and wrong ones that mislead: 0 for wrong, 1 for roughly right, 2 for right.
Grade = Callable[[str, Any, Sequence[str]], float]


def canonical(name: str) -> str:
    """A name of an entity or relation as it is compared: in lower case, words alone, single spaces between them."""
    folded = unicodedata.normalize("NFKC", name).casefold()
    return " ".join(re.findall(r"[^\W_]+", folded)) or folded.strip()


def read_triples(text: str) -> list[Triple]:
    """The triples that a text states, one a line: ``head -> relation -> tail``; other lines are left out."""
    rows = [[part.strip(" \t*-") for part in line.split("->")] for line in text.splitlines()]
    return [Triple(*row) for row in rows if len(row) == 3 and all(row)]


def word_cosine(a: str, b: str) -> float:
    """Cosine of two bags of words; 1 for two empty ones."""
    left, right = squad_words(a), squad_words(b)
    if not left and not right:
        return 1.0
    size = math.sqrt(sum(n * n for n in left.values()) * sum(n * n for n in right.values()))
    return sum(n * right[word] for word, n in left.items()) / size if size else 0.0


def relation_paths(triples: Iterable[Sequence[str]], *, most: int = _MOST_PATHS) -> set[tuple[str, ...]]:
    """The relations along every path of one hop or more that starts at a root and visits no entity twice.

    A root is an entity that nothing points to. Where a cycle has nothing before it, each of its entities is one.

    Args:
        triples: a graph; names are compared by ``canonical``.
        most: paths to follow.

    Raises:
        ValueError: when there are more.
    """
    graph = _graph(triples)
    followed, found = 0, set()
    stack: list[tuple[str, frozenset[str], tuple[str, ...]]] = [(root, frozenset([root]), ()) for root in _roots(graph)]
    while stack:
        entity, visited, path = stack.pop()
        for _, tail, relation in graph.out_edges(entity, keys=True):
            if tail in visited:
                continue
            followed += 1
            if followed > most:
                raise ValueError(f"the graph has more than {most} paths")
            found.add((*path, relation))
            stack.append((tail, visited | {tail}, (*path, relation)))
    return found


def match_graphs(
    triples: Sequence[Sequence[str]], reference: Sequence[Sequence[str]], *, semantic: float = 1.0
) -> GraphMatch:
    """Compare the graph of a thought with a reference graph.

    logic = J(relation paths),  entities = J(entities),  J(A,B) = |A ∩ B| / |A ∪ B|

    Args:
        triples: the thought's, any number.
        reference: the reference's, at least one.
        semantic: similarity of the two texts.

    Returns:
        Three numbers; ``logic`` is 0 where a graph has too many paths to follow.

    Source: Lu et al. 2025 (Med-R^3). Its code follows one edge per node from the second hop on, and overwrites paths
        that meet; here all paths count.
    """
    try:
        logic = jaccard(relation_paths(triples), relation_paths(reference))
    except ValueError:
        logic = 0.0
    return GraphMatch(logic, semantic, jaccard(_graph(triples), _graph(reference)))


def reasoning_graph(
    text: str,
    references: Sequence[ReasoningGraph],
    *,
    extract: Extract = read_triples,
    similarity: Similarity = word_cosine,
) -> GraphMatch:
    """The best match of a thought with reference reasonings: max over them of (logic + semantic + entities) / 3.

    Args:
        text: the thought.
        references: at least one, each with a graph.
        extract: text to its triples.
        similarity: two texts to a number, of which the part in [0,1] counts.

    Raises:
        RewardError: when there is no reference, or one has no triples.

    Source: Lu et al. 2025 (Med-R^3).
    """
    if not references or not all(reference.triples for reference in references):
        raise RewardError(
            f"reasoning_graph has {len(references)} reference graphs, of which "
            f"{sum(not reference.triples for reference in references)} are empty, want at least one and none empty; "
            "fix metadata 'graphs'"
        )
    triples = [Triple(*map(str, triple)) for triple in extract(text)][:_MOST_TRIPLES]
    matches = [
        match_graphs(triples, r.triples, semantic=min(1.0, max(0.0, float(similarity(text, r.text)))))
        for r in references
    ]
    return max(matches, key=lambda match: match.score)


def language_share(text: str, question: str) -> float:
    """Share of a text's letters that belong to the script of most of the question's letters; 1 without letters.

    Scripts stand for languages: English in an answer to a Chinese question is seen, French in one to an English is not.
    """
    scripts, wanted = _scripts(text), _scripts(question)
    if not scripts or not wanted:
        return 1.0
    return scripts[wanted.most_common(1)[0][0]] / scripts.total()


def thinking_length(thought: int, answer: int) -> float:
    """Credit for thinking longer than answering: (1 - exp(-min(thought / answer, 2))) / (1 - exp(-2)).

    Args:
        thought, answer: characters; an answer of none has all credit.

    Returns:
        In [0,1]; 1 from twice as much thought on.
    """
    ratio = min(thought / answer, 2.0) if answer else 2.0
    return (1 - math.exp(-ratio)) / (1 - math.exp(-2))


def exact_grade(answer: str, reference: Any, misleading: Sequence[str]) -> float:
    """2 for the words of a reference, 1 for an answer that holds all of them and no misleading one, else 0."""
    words = squad_words(answer)
    references = [squad_words(text) for text in reference_texts("graph_reasoning", reference)]
    if words in references:
        return 2.0
    named = any(wrong and wrong <= words for wrong in (squad_words(text) for text in misleading))
    return float(not named and any(right and right <= words for right in references))


class AskedGrade:
    """A judge in the place of ``exact_grade``."""

    def __init__(self, judge: Judge) -> None:
        self.judge, self.stats = judge, judge.stats

    def __call__(self, answer: str, reference: Any, misleading: Sequence[str]) -> float:
        """Grade one answer.

        Raises:
            JudgeError: when the judge has no verdict.
        """
        wrong = f" Answers that mislead, and are wrong: {'; '.join(misleading)}." if misleading else ""
        question: Question = Rating(
            prompt="",
            answers=(answer,),
            reference="\n".join(reference_texts("graph_reasoning", reference)),
            criteria=f"Whether the answer is the reference: 0 wrong, 1 roughly right, 2 right.{wrong}",
            low=0,
            high=2,
        )
        (verdict,) = self.judge.ask([question])
        if isinstance(verdict, JudgeError):
            raise verdict
        return float(round(2 * verdict.values[0]))


def _imported(value: Any) -> Any:
    return import_object(value) if isinstance(value, str) else value


Function = Annotated[Any, BeforeValidator(_imported)]
GradeOption = Annotated[Grade | Judge, SkipValidation, BeforeValidator(resolve_judge_or_function), DESCRIBED]


@reward("graph_reasoning", paper=_PAPER)
class GraphReasoning:
    """Reward an answer by its grade and its thought by the reference graphs, less for straying from form.

    0 in a bad form; else max(0, r_ans + w r_kg) - (1 - l_think) p - (1 - l_answer) p - (1 - l_length) p

    r_ans is 0, 0.4 or 1 by the grade, r_kg that of ``reasoning_graph``, l the ``language_share`` of thought and answer
    and the ``thinking_length``, which are measured without queries and documents. Field ``metadata`` holds ``graphs``:
    mappings of ``triples`` and ``text``; and, if there are, ``misleading``: answers that are wrong.

    Args:
        grade: an answer, the reference and misleading answers to 0, 1 or 2: a judge, a function, or an import path to
            one. By default the words are compared.
        extract: a thought to its triples, a function or an import path to one; a language model in the source.
        similarity: two texts to a number in [0,1], likewise; cosine of embeddings in the source, of words by default.
        weight: w, of the graph.
        penalty: p, of each deviation.
        gate: count the graph only if the answer is not wrong. Without, as in the source, a wrong answer with a perfect
            graph earns 0.8, twice as much as a roughly right one without a graph.
        think, query, documents, answer_in: marks; see ``search_format``, which decides what a bad form is.

    Source: Lu et al. 2025 (Med-R^3), from its code.
    """

    def __init__(
        self,
        *,
        grade: GradeOption = exact_grade,
        extract: Function = read_triples,
        similarity: Function = word_cosine,
        weight: Annotated[float, Field(ge=0)] = 0.8,
        penalty: Annotated[float, Field(ge=0)] = 0.1,
        gate: bool = False,
        think: Marks = THINK,
        query: Marks = QUERY,
        documents: Marks = DOCUMENTS,
        answer_in: Marks = ANSWER,
    ) -> None:
        resolved = resolve_judge_or_function(grade)
        self.grade: Grade = AskedGrade(resolved) if isinstance(resolved, Judge) else resolved
        self.extract, self.similarity = _imported(extract), _imported(similarity)
        self.weight, self.penalty, self.gate = weight, penalty, gate
        self.think, self.answer_in = think, answer_in
        self.query, self.documents = query, documents

    def __call__(self, text: str, answer: Any, metadata: Mapping[str, Any], prompt: str = "") -> Score:
        """Score one text.

        Args:
            text: what the policy wrote, with what was inserted.
            answer: the reference.
            metadata: with the reference graphs.
            prompt: the question, whose language is wanted.

        Returns:
            The value; its detail holds the parts.

        Raises:
            RewardError: when there are no reference graphs, or the grade is none of 0, 1 and 2.
        """
        references = reference_graphs(metadata)
        form = search_format(
            text, think=self.think, query=self.query, documents=self.documents, answer_in=self.answer_in
        )
        if form.value < 1:
            return Score(0.0, detail=form.detail)
        own = _without_searches(text, self.query, self.documents)
        thought, given = marked(own, self.think) or "", marked(own, self.answer_in) or ""
        grade = self.grade(given, answer, list(metadata.get("misleading", ())))
        if grade not in (0, 1, 2):
            raise RewardError(f"reward 'graph_reasoning': the grade is {grade!r:.60}, want 0, 1 or 2")
        match = reasoning_graph(thought, references, extract=self.extract, similarity=self.similarity)
        right = GRADES[int(grade)]
        kept = [
            language_share(thought, prompt),
            language_share(given, prompt),
            thinking_length(len(thought), len(given)),
        ]
        graph = 0.0 if self.gate and not right else match.score
        value = max(0.0, right + self.weight * graph) - self.penalty * sum(1 - share for share in kept)
        detail = {"answer": right, "graph": match.score, **match._asdict()}
        detail |= dict(zip(("thought_language", "answer_language", "length"), kept, strict=True))
        return Score(value, detail={name: round(float(number), 4) for name, number in detail.items()})


def reference_graphs(metadata: Mapping[str, Any]) -> list[ReasoningGraph]:
    """The reference graphs of a problem.

    Raises:
        RewardError: when they are not what they should be.
    """
    try:
        return [
            ReasoningGraph([Triple(*map(str, triple)) for triple in graph["triples"]], str(graph.get("text", "")))
            for graph in metadata["graphs"]
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise RewardError(
            f"reward 'graph_reasoning': metadata has no usable 'graphs' ({type(error).__name__}: {error}), want a list "
            "of mappings with 'triples' (head, relation, tail) and 'text'"
        ) from None


def _without_searches(text: str, query: Marks, documents: Marks) -> str:
    own = without_documents(text, query=query, documents=documents)
    return re.sub(rf"{re.escape(query[0])}.*?{re.escape(query[1])}", "", own, flags=re.DOTALL)


def _graph(triples: Iterable[Sequence[str]]) -> nx.MultiDiGraph:
    graph = nx.MultiDiGraph()
    for head, relation, tail in triples:
        graph.add_edge(canonical(head), canonical(tail), key=canonical(relation))
    return graph


def _roots(graph: nx.MultiDiGraph) -> list[str]:
    """Entities of the strongly connected parts that nothing points to."""
    parts: Any = nx.condensation(nx.DiGraph(graph))
    return sorted(e for part, count in parts.in_degree() if count == 0 for e in parts.nodes[part]["members"])


def _scripts(text: str) -> Counter[str]:
    """Letters of each script, by the first word of their Unicode names."""
    counted = Counter(c for c in text if c.isalpha())
    out: Counter[str] = Counter()
    for letter, count in counted.items():
        out[unicodedata.name(letter, "UNKNOWN").partition(" ")[0]] += count
    return out
