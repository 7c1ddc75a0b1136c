"""Rewards of a ranked group: what the policy offers, best first, of which one is wanted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from guerdon.rewards.forms import Score, grouped, reward
from guerdon.rewards.verifiable import exact


def rank_discounts(size: int) -> list[float]:
    """Weights of the ranks of a list, as NDCG discounts them, adding up to 1.

    w_rank = 1 / log2(rank + 2) / sum_j 1 / log2(j + 2)

    Args:
        size: length of the list, whose ranks count from 0.
    """
    discount = [1 / math.log2(rank + 2) for rank in range(size)]
    return [x / sum(discount) for x in discount]


@grouped
@reward(paper="Tan et al. 2025, arXiv 2510.12211")
def rank_discount(text: Sequence[str], answer: Sequence[Any], *, normalise: bool = True) -> list[Score]:
    """Punish wrong items by how high they are ranked, in groups that hold the wanted item.

    -w_rank for every item but the wanted one, which gets 0; 0 for all where nobody is it;  w: ``rank_discounts``

    The members of a group must come in the order of their rank, as source ``constrained_beam`` gives them. Added to
    reward ``exact``, which gives the wanted item 1, it tells wrong items apart. Without the wanted item a group has no
    ranking to learn, for who should be first is unknown.

    Args:
        text: items of a group, best first.
        answer: the wanted item, the same for all.
        normalise: see ``exact``.

    Returns:
        A score of each; ``detail`` is its rank, from 0.

    Source: Tan et al. 2025, arXiv 2510.12211, and its code.
    """
    wanted = [exact(item, answer[0], normalise=normalise) > 0 for item in text]
    weights = rank_discounts(len(text)) if any(wanted) else [0.0] * len(text)
    return [
        Score(0.0 if hit else -weight, detail={"rank": rank})
        for rank, (hit, weight) in enumerate(zip(wanted, weights, strict=True))
    ]
