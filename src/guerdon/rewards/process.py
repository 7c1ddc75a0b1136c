"""Rewards of how an answer came about: whether a text searches before it answers, how often, and in which form.

A text asks between two marks, what was found stands behind between two others, as ``sampling.tool`` writes it, and the
answer stands between two of its own. All of them are options.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from guerdon.rewards.forms import Score, reward
from guerdon.rewards.ngrams import squad_words, token_f1

Mark = Annotated[str, Field(min_length=1)]
Marks = tuple[Mark, Mark]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(gt=0, lt=1)]

QUERY: Marks = ("<|begin_of_query|>", "<|end_of_query|>")
DOCUMENTS: Marks = ("<|begin_of_documents|>", "<|end_of_documents|>")
ANSWER: Marks = ("<answer>", "</answer>")
THINK: Marks = ("<think>", "</think>")
_PAPER = "Yu et al. 2025, arXiv 2507.23581"
_BETWEEN = 16  # characters of the token that ended a query which may stand before what was found


class Retrieval(NamedTuple):
    """A query, and what stands behind it.

    Attributes:
        query: without white space around it; empty where nothing was asked.
        found: likewise.
        start, end: from where to where the found text reaches, its marks included.
    """

    query: str
    found: str
    start: int
    end: int


def read_retrievals(text: str, *, query: Marks = QUERY, documents: Marks = DOCUMENTS) -> list[Retrieval]:
    """Every query that something was found for, in order.

    A query reaches from the last opening mark to the closing mark, and what was found stands directly behind it; marks
    inside of it mean nothing. What a text writes between the marks of documents by itself, behind no query, is not
    counted.

    Args:
        text: with what was inserted.
        query: what stands around a query.
        documents: what stands around what was found.
    """
    out: list[Retrieval] = []
    at = 0
    while (closed := text.find(query[1], at)) >= 0:
        _, opened, asked = text[at:closed].rpartition(query[0])
        at = closed + len(query[1])
        start = text.find(documents[0], at, at + _BETWEEN + len(documents[0]))
        if start < 0 or any(mark in text[at:start] for mark in query):
            continue
        inside = start + len(documents[0])
        end = text.find(documents[1], inside)
        last = len(text) if end < 0 else end
        at = last + (len(documents[1]) if end >= 0 else 0)
        out.append(Retrieval(asked.strip() if opened else "", text[inside:last].strip(), start, at))
    return out


def valid_retrievals(text: str, *, query: Marks = QUERY, documents: Marks = DOCUMENTS) -> list[Retrieval]:
    """The retrievals that count: something was asked for the first time, and something was found.

    Queries are the same whose words are, in any order; case, punctuation and articles do not count.

    Args:
        text: with what was inserted.
        query, documents: the marks.
    """
    seen: set[frozenset[tuple[str, int]]] = set()
    out = []
    for retrieval in read_retrievals(text, query=query, documents=documents):
        words = frozenset(squad_words(retrieval.query).items())
        if words and retrieval.found and words not in seen:
            seen.add(words)
            out.append(retrieval)
    return out


def without_documents(text: str, *, query: Marks = QUERY, documents: Marks = DOCUMENTS) -> str:
    """A text without what was found for its queries."""
    at, kept = 0, []
    for retrieval in read_retrievals(text, query=query, documents=documents):
        kept.append(text[at : retrieval.start])
        at = retrieval.end
    return "".join([*kept, text[at:]])


def marked(text: str, marks: Marks) -> str | None:
    """What stands between the last two marks of a text; None without."""
    end = text.rfind(marks[1])
    start = text.rfind(marks[0], 0, max(end, 0))
    return None if start < 0 else text[start + len(marks[0]) : end].strip()


def retrieval_increments(count: int, *, value: float = 0.5, decay: float = 0.5) -> list[float]:
    """What each retrieval adds to ``retrieval_value``: value decay^(j - 1) for the j-th."""
    return [value * decay**j for j in range(count)]


def retrieval_value(count: int, *, value: float = 0.5, decay: float = 0.5) -> float:
    """Worth of so many retrievals: value (1 - decay^count) / (1 - decay), below value / (1 - decay).

    Args:
        count: valid retrievals.
        value: of the first.
        decay: in (0,1), by which each is worth less than the one before.
    """
    return value * (1 - decay**count) / (1 - decay)


def cost_factor(count: int, *, scale: float = 1.2, cost: float = 0.1) -> float:
    """Factor of an answer that took so many retrievals: scale exp(-cost count)."""
    return scale * math.exp(-cost * count)


@reward("retrieval_bonus", paper=_PAPER)
def retrieval_bonus(
    text: str,
    *,
    value: Positive = 0.5,
    decay: Share = 0.5,
    query: Marks = QUERY,
    documents: Marks = DOCUMENTS,
) -> Score:
    """Reward every valid retrieval, each less than the one before.

    sum_j value decay^(j - 1) = value (1 - decay^n) / (1 - decay),  n retrievals as ``valid_retrievals`` counts them

    It is a reward of a training stage: beside a reward of answers a large value drowns that, and searching goes on
    for its own sake.

    Args:
        text: what the policy wrote, with what was inserted.
        value: of the first retrieval.
        decay: of each further one.
        query, documents: the marks.

    Returns:
        In [0, value / (1 - decay)); its detail holds ``calls`` and the ``increments``.

    Source: Yu et al. 2025 (GraphRAG-R1, progressive retrieval attenuation). Its abstract names the reward; form and
        defaults are inferred.
    """
    calls = len(valid_retrievals(text, query=query, documents=documents))
    increments = [round(x, 6) for x in retrieval_increments(calls, value=value, decay=decay)]
    return Score(retrieval_value(calls, value=value, decay=decay), detail={"calls": calls, "increments": increments})


@reward("cost_aware_f1", paper=_PAPER)
def cost_aware_f1(
    text: str,
    answer: Any,
    *,
    scale: Annotated[float, Field(ge=1)] = 1.2,
    cost: Annotated[float, Field(ge=0)] = 0.1,
    query: Marks = QUERY,
    documents: Marks = DOCUMENTS,
    answer_in: Marks = ANSWER,
) -> Score:
    """Reward a right answer, the less the more retrievals it took.

    F1 scale exp(-cost n),  F1 of words as ``token_f1``, n retrievals as ``valid_retrievals`` counts them

    Args:
        text: what the policy wrote, with what was inserted.
        answer: the reference, or several that are equally good.
        scale: of a right answer without a retrieval.
        cost: of a retrieval; 0 gives ``scale`` times F1.
        query, documents: the marks.
        answer_in: what stands around the answer; the last one counts, and none inside of documents.

    Returns:
        In [0, scale]; its detail holds ``f1`` and ``calls``.

    Raises:
        RewardError: when a reference has no words.

    Source: Yu et al. 2025 (GraphRAG-R1, cost-aware F1). Its abstract names the reward; form and defaults are inferred.
    """
    calls = len(valid_retrievals(text, query=query, documents=documents))
    given = marked(without_documents(text, query=query, documents=documents), answer_in)
    f1 = token_f1(given or "", answer).value
    return Score(f1 * cost_factor(calls, scale=scale, cost=cost), detail={"f1": round(f1, 4), "calls": calls})


@reward("search_format")
def search_format(
    text: str,
    *,
    think: Marks | None = THINK,
    query: Marks = QUERY,
    documents: Marks = DOCUMENTS,
    answer_in: Marks = ANSWER,
) -> Score:
    """Score the form of a text that thinks, searches while it thinks, and answers.

    1 for one thought and one answer, in this order, with nothing after them, neither empty, every query and every
    document between two marks, inside the thought;  0.5 where only the marks of documents are not in pairs, or the
    answer holds marks;  0 otherwise

    What was found counts for nothing but its marks.

    Args:
        text: what the policy wrote, with what was inserted.
        think: what stands around the thought; without, all before the answer is the thought.
        query, documents, answer_in: the other marks.

    Returns:
        0, 0.5 or 1; its detail says ``why`` it is not 1.

    Source: Lu et al. 2025, arXiv 2507.23541 (Med-R^3: the rules of its code); Yu et al. 2025 (GraphRAG-R1: the marks).
    """
    own = without_documents(text, query=query, documents=documents)
    wrong = _broken_form(own, think, query, answer_in)
    if wrong:
        return Score(0.0, detail={"why": wrong})
    before, _, answer = own.rpartition(answer_in[0])
    if not in_pairs(before, documents) or any(mark in answer for mark in (*query, *documents)):
        held = "documents are not in pairs" if not in_pairs(before, documents) else "marks stand in the answer"
        return Score(0.5, detail={"why": held})
    return Score(1.0)


def in_pairs(text: str, marks: Marks) -> bool:
    """Whether opening and closing marks alternate, and every opened one is closed."""
    at = 0
    while (start := text.find(marks[0], at)) >= 0:
        if 0 <= text.find(marks[1], at) < start:
            return False
        end = text.find(marks[1], start + len(marks[0]))
        if end < 0 or 0 <= text.find(marks[0], start + len(marks[0])) < end:
            return False
        at = end + len(marks[1])
    return text.find(marks[1], at) < 0


def _broken_form(text: str, think: Marks | None, query: Marks, answer_in: Marks) -> str:
    """What makes a text, without its documents, earn nothing; empty where nothing does."""
    wanted: Sequence[str] = [*(think or ()), *answer_in]
    for mark in wanted:
        if (count := text.count(mark)) != 1:
            return f"{mark} stands {count} times"
    places = [text.find(mark) for mark in wanted]
    thought = text[: places[-2]] if think is None else text[places[0] + len(think[0]) : places[1]]
    answer, after = text[places[-2] : places[-1]], text[places[-1] + len(answer_in[1]) :]
    inside, all_over = (sum(part.count(mark) for mark in query) for part in (thought + answer, text))
    faults = {
        f"{' '.join(wanted)} do not stand in this order": places != sorted(places),
        "something follows the answer": bool(after.strip()),
        "the answer is empty": not marked(text, answer_in),
        "the thought is empty": think is not None and not thought.strip(),
        "queries are not in pairs": not in_pairs(thought, query),
        "a query stands outside of the thought": all_over > inside,
    }
    return next((why for why, found in faults.items() if found), "")
