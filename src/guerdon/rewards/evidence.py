"""Reward of what an answer stands on: the documents that its searches found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from guerdon.errors import RewardError
from guerdon.rewards.forms import Score, reward
from guerdon.rewards.process import DOCUMENTS, QUERY, Marks, read_retrievals, valid_retrievals
from guerdon.rewards.reasoning_graph import canonical


class Evidence(NamedTuple):
    """What the searches of a text brought.

    Attributes:
        recall: share of the relevant documents that were found.
        level: mean level of evidence of what was found, each document once; 0 without any.
        fresh: share of what was found, repetitions counted, that is relevant and was not found before.
        calls: valid retrievals.
    """

    recall: float
    level: float
    fresh: float
    calls: int


def read_evidence(
    text: str,
    relevant: Iterable[str],
    levels: Mapping[str, float] | None = None,
    *,
    query: Marks = QUERY,
    documents: Marks = DOCUMENTS,
) -> Evidence:
    """What the searches of a text brought; documents are the lines of what was found.

    Args:
        text: with what was inserted.
        relevant: the documents that the answer stands on.
        levels: level of evidence in [0,1] by document; 0 for the others.
        query, documents: the marks.
    """
    wanted = {canonical(document) for document in relevant}
    known = {canonical(document): float(level) for document, level in (levels or {}).items()}
    found = [
        canonical(line)
        for retrieval in read_retrievals(text, query=query, documents=documents)
        if retrieval.query
        for line in retrieval.found.splitlines()
        if line.strip()
    ]
    once = list(dict.fromkeys(found))
    fresh = sum(document in wanted for document in once)
    return Evidence(
        recall=fresh / len(wanted) if wanted else 0.0,
        level=sum(known.get(document, 0.0) for document in once) / len(once) if once else 0.0,
        fresh=fresh / len(found) if found else 0.0,
        calls=len(valid_retrievals(text, query=query, documents=documents)),
    )


@reward("evidence_found", paper="Lu et al. 2025, arXiv 2507.23541")
def evidence_found(
    text: str,
    metadata: Mapping[str, Any],
    *,
    recall: float = 1.0,
    level: float = 1.0,
    fresh: float = 1.0,
    cost: float = 0.05,
    query: Marks = QUERY,
    documents: Marks = DOCUMENTS,
) -> Score:
    """Reward searches by the evidence that they bring, and charge for each.

    w_use recall + w_lvl level + w_new fresh - w_cost calls,  see ``Evidence``

    Each line of what was found is a document. Field ``metadata`` holds ``relevant``: those that the answer stands on;
    and, if known, ``levels``: the level of evidence of a document in [0,1], such as guideline 1, review 0.8, trial 0.6,
    case 0.3. The reward of the answer is one of its own.

    Args:
        text: what the policy wrote, with what was inserted.
        metadata: with the relevant documents.
        recall, level, fresh: weights of the three parts.
        cost: of a valid retrieval.
        query, documents: the marks.

    Returns:
        The value; its detail holds the parts.

    Raises:
        RewardError: when no document is relevant.

    Source: Lu et al. 2025 (Med-R^3); the parts are named in it, and their forms and weights are inferred.
    """
    relevant = [str(document) for document in metadata.get("relevant", ())]
    if not relevant:
        raise RewardError(
            "reward 'evidence_found': metadata has no 'relevant' documents; give those the answer stands on"
        )
    seen = read_evidence(text, relevant, metadata.get("levels"), query=query, documents=documents)
    value = recall * seen.recall + level * seen.level + fresh * seen.fresh - cost * seen.calls
    return Score(value, detail={name: round(float(part), 4) for name, part in seen._asdict().items()})
