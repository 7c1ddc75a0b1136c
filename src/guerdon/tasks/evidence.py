"""Which passages a question needs: minimal sufficient sets, mined with whoever can tell whether a set suffices."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

from guerdon.errors import TaskError
from guerdon.seeding import numpy_generator

Passage = TypeVar("Passage", bound=Hashable)


def mine_minimal_sets(
    pool: Sequence[Passage],
    sufficient: Callable[[list[Passage]], bool],
    *,
    orders: int = 1,
    votes: int = 1,
    seed: int = 0,
) -> list[frozenset[Passage]]:
    """Find sets of passages that suffice and from which none can be left out.

    From the whole pool one passage after the other is left out for good if the rest still suffices, the least relevant
    first; passes are repeated until one leaves out nothing. A passage is judged beside what is left by then, not beside
    the whole pool, where of two passages that can stand for each other neither would seem needed.

    One order of leaving out finds one minimal set, of which a question may have several; further orders are drawn at
    random. If more passages can mislead the judge, what is found depends on the order.

    Args:
        pool: different passages or their ids, the most relevant first.
        sufficient: whether a question can be answered from passages, in the pool's order: an answer written from them
            is judged right. Asked once per set, or until a majority of ``votes`` is certain.
        orders: how many orders of leaving out.
        votes: how often a set is judged, an odd number; for a judge that errs now and then.
        seed: of the further orders.

    Returns:
        Different minimal sets, in the order in which they were found; an empty one if no passage is needed. No set at
        all if the pool does not suffice: such a question is left out of training.

    Raises:
        TaskError: when a passage stands twice in the pool, or ``orders`` or ``votes`` have no meaning.

    Source: Zhu et al. 2025, arXiv 2512.14465.
    """
    if len(set(pool)) < len(pool):
        raise TaskError(f"mine_minimal_sets: a passage stands twice in a pool of {len(pool)}; want different ones")
    if orders < 1 or votes < 1 or votes % 2 == 0:
        raise TaskError(
            f"mine_minimal_sets: orders is {orders} and votes {votes}; want at least 1 of each, and votes to be odd"
        )
    verdicts: dict[frozenset[Passage], bool] = {}

    def enough(chosen: frozenset[Passage]) -> bool:
        if chosen not in verdicts:
            verdicts[chosen] = _majority(sufficient, [one for one in pool if one in chosen], votes)
        return verdicts[chosen]

    whole = frozenset(pool)
    if not enough(whole):
        return []
    generator = numpy_generator(seed, "mine_minimal_sets")
    found: dict[frozenset[Passage], None] = {}
    for turn in range(orders):
        order = list(reversed(pool))
        found[_reduced(whole, [order[i] for i in generator.permutation(len(order))] if turn else order, enough)] = None
    return list(found)


def _reduced(
    whole: frozenset[Passage], order: Sequence[Passage], enough: Callable[[frozenset[Passage]], bool]
) -> frozenset[Passage]:
    left, before = whole, None
    while left != before:
        before = left
        for one in order:
            if one in left and enough(left - {one}):
                left = left - {one}
    return left


def _majority(sufficient: Callable[[list[Passage]], bool], passages: list[Passage], votes: int) -> bool:
    """Ask until more than half of the votes are the same."""
    yes = no = 0
    while max(yes, no) <= votes // 2:
        if sufficient(list(passages)):
            yes += 1
        else:
            no += 1
    return yes > no
