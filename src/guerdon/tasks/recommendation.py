"""The recommendation task: which item follows a user's history."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import product
from typing import ClassVar

import numpy as np

from guerdon.errors import RecipeError
from guerdon.registry import register
from guerdon.rewards.verifiable import exact
from guerdon.seeding import derive, numpy_generator
from guerdon.tasks.base import Kind, Problem, Task

NAME_LENGTH = 3
LETTERS = "abcdefghijklmnopqrstuvwxyz"
HELD_OUT = 10  # one history in so many
BLOCK = 256  # histories drawn at a time, whatever is asked for, so that more of them begin with the same ones


@register("task", "recommendation")
class Recommendation(Task):
    """Name the item that follows a history, which a Markov chain over made-up items has written.

    An item's name has three characters, one token each for ``tiny_lm``. After every item ``successors`` others are
    likely, the first of them most (1 / (rank + 1) each), and with probability ``noise`` any item follows. What follows
    what, and the names, are drawn from ``seed``. One history in ten is held out.

    Attributes:
        items: the names, of which source ``constrained_beam`` makes its constraint.
        transitions: (items, items) probability that an item follows another.

    Args:
        size: number of items.
        letters: size of the alphabet of which names are made; the smaller, the more names begin alike.
        history: items shown.
        successors: likely successors of an item.
        noise: probability that any item follows.
        seed: of names and successors.

    Raises:
        RecipeError: when there are fewer names than items, or fewer items than successors.
    """

    kind: ClassVar[Kind] = "language"
    supplies = frozenset({"answer"})

    def __init__(
        self,
        *,
        size: int = 100,
        letters: int = 8,
        history: int = 4,
        successors: int = 5,
        noise: float = 0.1,
        seed: int = 0,
    ) -> None:
        if not 1 <= letters <= len(LETTERS) or not 1 < size <= letters**NAME_LENGTH:
            raise RecipeError(
                f"task 'recommendation': {letters} letters make {letters**NAME_LENGTH} names for {size} items; use "
                f"more letters, {len(LETTERS)} at most, or fewer items, 2 at least"
            )
        if not 1 <= successors <= size or history < 1 or not 0 <= noise <= 1:
            raise RecipeError(
                f"task 'recommendation': successors is {successors}, history {history} and noise {noise}, wanted 1 to "
                f"{size}, at least 1, and 0 to 1"
            )
        generator = numpy_generator(seed, "items")
        names = ["".join(name) for name in product(LETTERS[:letters], repeat=NAME_LENGTH)]
        self.items: list[str] = sorted(generator.choice(names, size, replace=False).tolist())
        likely = np.argsort(generator.random((size, size)), axis=1)[:, :successors]
        odds = 1 / np.arange(1, successors + 1)
        self.transitions = np.full((size, size), noise / size)
        np.add.at(self.transitions, (np.arange(size)[:, None], likely), (1 - noise) * odds / odds.sum())
        self.history = history
        self.scorer = exact

    def train_batch(self, n: int, seed: int) -> list[Problem]:
        """Draw ``n`` histories that are not held out, each with what followed it."""
        return self._problems(n, numpy_generator(seed, "histories"), held_out=False)

    def eval_problems(self, n: int) -> list[Problem]:
        """The first ``n`` held-out histories."""
        return self._problems(n, numpy_generator(0, "held out"), held_out=True)

    def corpus(self) -> Iterable[str]:
        """The names of all items, and a history."""
        yield from self.items
        yield " ".join(self.items[: self.history])

    def _problems(self, n: int, generator: np.random.Generator, *, held_out: bool) -> list[Problem]:
        ladder, found = self.transitions.cumsum(axis=1), []
        while len(found) < n:
            path = [generator.integers(len(self.items), size=BLOCK)]
            for _ in range(self.history):
                drawn = (ladder[path[-1]] < generator.random((BLOCK, 1))).sum(axis=1)
                path.append(np.minimum(drawn, len(self.items) - 1))
            for *shown, wanted in np.stack(path, axis=1).tolist():
                prompt = " ".join(self.items[item] for item in shown)
                key = derive(0, "history", prompt)
                if (key % HELD_OUT == 0) == held_out:
                    found.append(Problem(key, prompt, answer=self.items[wanted]))
        return found[:n]


def hit_rate(ranked: Sequence[Sequence[str]], wanted: Sequence[str], k: int) -> float:
    """HR@K: share of lists whose first ``k`` items hold the wanted one.

    Args:
        ranked: recommended items of each user, best first.
        wanted: the item each user went on to.
        k: how many items count.
    """
    return sum(rank < k for rank in _ranks(ranked, wanted)) / len(wanted)


def ndcg(ranked: Sequence[Sequence[str]], wanted: Sequence[str], k: int) -> float:
    """NDCG@K with one wanted item: mean of 1 / log2(rank + 2), ranks from 0, and 0 beyond the first ``k``.

    Args:
        ranked: recommended items of each user, best first.
        wanted: the item each user went on to.
        k: how many items count.
    """
    return sum(1 / math.log2(rank + 2) for rank in _ranks(ranked, wanted) if rank < k) / len(wanted)


def _ranks(ranked: Sequence[Sequence[str]], wanted: Sequence[str]) -> list[float]:
    """Rank of each wanted item, infinite where it is not in its list."""
    lists = zip(ranked, wanted, strict=True)
    return [next((rank for rank, item in enumerate(items) if item == one), math.inf) for items, one in lists]
