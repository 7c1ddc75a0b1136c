"""Reward of what a search asks for: whether a query says what the user meant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from guerdon.errors import RewardError
from guerdon.rewards.forms import Score, reward
from guerdon.rewards.ngrams import token_f1
from guerdon.rewards.process import DOCUMENTS, QUERY, Mark, Marks, read_retrievals


def best_query(queries: Sequence[str], rewrite: Any) -> tuple[float, str]:
    """F1 of the words of the query nearest to the rewrite, and that query; 0 and nothing where there is none.

    max_k F1(q_k, rewrite),  F1 as ``token_f1``

    Args:
        queries: what was asked, in any order.
        rewrite: the user's turn as it reads without the conversation, or several such.
    """
    scored = [(token_f1(query, rewrite).value, query) for query in queries]
    return max(scored, key=lambda pair: pair[0], default=(token_f1("", rewrite).value, ""))


@reward("intent_f1", paper="Lupart et al. 2025 (ChatR1)")
def intent_f1(
    text: str, metadata: Mapping[str, Any], *, key: Mark = "rewrite", query: Marks = QUERY, documents: Marks = DOCUMENTS
) -> Score:
    """Score how well the best query of a text says what the user meant.

    max_k F1(q_k, rewrite);  0 without a query.  Beside the F1 of the answer its weight is 0.2 in the source.

    It is the best query and not the mean, so a second search costs nothing. Words are those of ``token_f1``, as in
    ``cost_aware_f1`` for the answer. Queries are those that something stands behind, so that one which was only
    written, or which a found document holds, pays nothing.

    Args:
        text: what the policy wrote, with what was inserted.
        metadata: what the task knows of the problem.
        key: where it holds the rewrite of the user's turn, or several that are equally good.
        query, documents: the marks.

    Returns:
        In [0,1]; its detail holds the ``query`` and the number of ``calls``.

    Raises:
        RewardError: when the problem has no rewrite, or one without words.

    Source: Lupart et al. 2025 (ChatR1, intent-aware reward).
    """
    if key not in metadata:
        known = ", ".join(sorted(map(str, metadata))) or "nothing"
        raise RewardError(
            f"reward 'intent_f1': the metadata of the problem has no '{key}' (it has {known}); name the field that "
            "holds the rewrite with 'key', or score only the problems that have one with 'when'"
        )
    asked = [retrieval.query for retrieval in read_retrievals(text, query=query, documents=documents)]
    value, best = best_query(asked, metadata[key])
    return Score(value, detail={"query": best, "calls": len(asked)})
