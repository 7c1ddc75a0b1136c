"""Problems that are drawn one by one from a grammar, split by what they ask for."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import TypeVar

import numpy as np

from guerdon.errors import RecipeError, TaskError
from guerdon.seeding import derive, numpy_generator
from guerdon.tasks.base import Problem, Task

Item = TypeVar("Item")

_RESOLUTION = 10_000  # of the share that is held out


class GeneratedTask(Task):
    """A task whose problems are drawn at random.

    What a problem asks for decides whether it is held out, so all its wordings are on the same side. A problem's
    ``task_id`` is a hash of its prompt.

    Attributes:
        name: the task's, for its errors.
    """

    kind = "language"
    supplies = frozenset({"answer"})
    name: str

    def __init__(self, seed: int, eval_fraction: float) -> None:
        """Say how problems are split.

        Args:
            seed: which ones are held out.
            eval_fraction: share of what can be asked for that is held out.

        Raises:
            RecipeError: when the share leaves nothing on one side.
        """
        if not 0 < eval_fraction < 1:
            raise RecipeError(f"task '{self.name}': eval_fraction is {eval_fraction}, want more than 0 and less than 1")
        self._seed, self._eval_fraction = seed, eval_fraction

    @abstractmethod
    def draw(self, generator: np.random.Generator) -> tuple[Problem, str]:
        """Draw a problem, and give what it asks for in a form that is the same for all its wordings."""

    def train_batch(self, n: int, seed: int) -> list[Problem]:
        """Draw ``n`` different training problems; a pure function of ``seed``.

        Raises:
            TaskError: when so many cannot be found.
        """
        return self._drawn(n, numpy_generator(seed, self.name, "train"), held_out=False)

    def eval_problems(self, n: int) -> list[Problem]:
        """The first ``n`` held-out problems, always the same; nothing that they ask for is asked for in training.

        Raises:
            TaskError: when so many cannot be found.
        """
        return self._drawn(n, numpy_generator(self._seed, self.name, "held out"), held_out=True)

    def corpus(self) -> Iterable[str]:
        """Prompts and answers of 512 training problems, or of as many as there are."""
        for problem in self._found(512, numpy_generator(0, self.name, "train"), held_out=False).values():
            yield problem.prompt
            yield problem.answer

    def _drawn(self, n: int, generator: np.random.Generator, *, held_out: bool) -> list[Problem]:
        found = self._found(n, generator, held_out=held_out)
        if len(found) < n:
            raise TaskError(
                f"task '{self.name}': looking for {n} {'held-out' if held_out else 'training'} problems gave only "
                f"{len(found)} different ones; ask for fewer, or change eval_fraction ({self._eval_fraction})"
            )
        return list(found.values())

    def _found(self, n: int, generator: np.random.Generator, *, held_out: bool) -> dict[int, Problem]:
        """Up to ``n`` different problems of one side."""
        found: dict[int, Problem] = {}
        for _ in range(1000 + 100 * n):
            if len(found) == n:
                break
            problem, asked = self.draw(generator)
            if self._is_held_out(asked) == held_out:
                found.setdefault(problem.task_id, problem)
        return found

    def _is_held_out(self, asked: str) -> bool:
        return derive(self._seed, "held out", asked) % _RESOLUTION < self._eval_fraction * _RESOLUTION


def pick(generator: np.random.Generator, items: tuple[Item, ...]) -> Item:
    """One of several items, each equally likely."""
    return items[int(generator.integers(len(items)))]
