"""Whether thoughts still depend on what is seen, or have become boilerplate."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple


class ThoughtDiversity(NamedTuple):
    """How much thoughts say about states.

    Attributes:
        distinct: share of different n-grams of words among all, over all thoughts.
        per_100: different thoughts per 100 states.
        information: mutual information of thought and state in nats.
        share: the same divided by the entropy of the states: 1 where a thought tells its state, 0 where it says
            nothing; 0 where all states are one.
    """

    distinct: float
    per_100: float
    information: float
    share: float


def thought_collapse(thoughts: Sequence[str], states: Sequence[Hashable], *, n: int = 2) -> ThoughtDiversity:
    """Measure how diverse thoughts are across states, and how much they depend on them.

    distinct = |different n-grams| / |n-grams|
    information = H(thought) + H(state) - H(thought, state), from counts

    A policy whose reward looks at actions alone may come to write the same thought whatever it sees: all four fall.
    Compare them with those of an earlier step on the same states; what is low depends on the task. Random thoughts are
    diverse and carry no information, but counts need each state several times to show that: seen once each, different
    thoughts look like information, whatever they say.

    Args:
        thoughts: N texts.
        states: N keys of the states in which they were thought.
        n: of the n-grams; thoughts with fewer words have one, of all of them.

    Returns:
        The four numbers; 0 without thoughts.

    Raises:
        ValueError: when there are not as many states as thoughts, or n is below 1.

    Source: Wei et al. 2025, arXiv 2503.08525 (thought collapse); Li et al. 2016, arXiv 1510.03055 (distinct-n). How
    they are put together is ours.
    """
    if len(thoughts) != len(states) or n < 1:
        raise ValueError(
            f"{len(thoughts)} thoughts, {len(states)} states and n {n}; wanted one state each, n from 1 on"
        )
    if not thoughts:
        return ThoughtDiversity(0.0, 0.0, 0.0, 0.0)
    grams = [gram for thought in thoughts for gram in _grams(thought.split(), n)]
    distinct = len(set(grams)) / len(grams) if grams else 0.0
    of_states = _entropy(states)
    information = max(0.0, _entropy(thoughts) + of_states - _entropy(zip(thoughts, states, strict=True)))
    share = information / of_states if of_states > 0 else 0.0
    return ThoughtDiversity(distinct, 100 * len(set(thoughts)) / len(set(states)), information, share)


def _grams(words: list[str], n: int) -> list[tuple[str, ...]]:
    if not words:
        return []
    return [tuple(words[i : i + n]) for i in range(max(len(words) - n, 0) + 1)]


def _entropy(values: Iterable[Hashable]) -> float:
    counts = Counter(values)
    total = counts.total()
    return math.log(total) - math.fsum(c * math.log(c) for c in counts.values()) / total
