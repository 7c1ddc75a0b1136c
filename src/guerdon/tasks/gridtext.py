"""A grid in words: find the key, open the door. Small enough to be learned in a minute."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Annotated

import numpy as np
from pydantic import Field

from guerdon.errors import TaskError
from guerdon.registry import register
from guerdon.seeding import derive, numpy_generator
from guerdon.tasks.base import Problem
from guerdon.tasks.environments import EnvironmentTask, Seconds, Step, Turns

Cell = tuple[int, int]
MOVES: dict[str, Cell] = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}


class KeyDoor:
    """One grid. The key is taken by stepping on it, and the door opens to who has the key.

    Args:
        size: rows and columns.
        penalty: reward of a turn that is no move, such as a word that means nothing.
        shaped: reward of taking the key.
    """

    def __init__(self, size: int, penalty: float = 0.0, shaped: float = 0.0) -> None:
        self._size, self._penalty, self._shaped = size, penalty, shaped

    def reset(self, problem: Problem, seed: int) -> Step:
        """Begin at the problem's places; nothing is random."""
        self._at, self._key, self._door = problem.start
        self._has = False
        return Step(self._seen())

    def step(self, action: str) -> Step:
        """Move by one cell; at a wall, or where the word is no move, stay."""
        move = MOVES.get(action.strip())
        if move is None:
            return Step(self._seen(), self._penalty)
        row, column = (min(max(x + d, 0), self._size - 1) for x, d in zip(self._at, move, strict=True))
        self._at = (row, column)
        found = not self._has and self._at == self._key
        self._has |= found
        if self._has and self._at == self._door:
            return Step("the door is open .", 1.0, terminated=True)
        return Step(self._seen(), self._shaped if found else 0.0)

    def towards(self) -> list[str]:
        """The moves that bring what is looked for next nearer."""
        down, right = (there - here for here, there in zip(self._at, self._goal, strict=True))
        wanted = {"up": -down, "down": down, "left": -right, "right": right}
        return [move for move, distance in wanted.items() if distance > 0]

    @property
    def _goal(self) -> Cell:
        return self._door if self._has else self._key

    def _seen(self) -> str:
        return describe(self._at, self._goal, self._has)


def describe(at: Cell, goal: Cell, has: bool) -> str:
    """What is seen: what to look for next, and how far down and right of here it lies."""
    down, right = goal[0] - at[0], goal[1] - at[1]
    vertical = f"{abs(down)} {'down' if down > 0 else 'up'}" if down else "level"
    horizontal = f"{abs(right)} {'right' if right > 0 else 'left'}" if right else "straight"
    return f"{'door' if has else 'key'} {vertical} {horizontal} ."


@register("task", name="gridtext")
class GridText(EnvironmentTask):
    """A grid of ``size`` x ``size`` cells in which a key and then a door must be reached; only the door pays.

    An observation says how far away the next of them is, as in ``key 2 up 1 left .``; an action is one of the words
    up, down, left and right. Grids are drawn anew for every batch; one in five layouts is held out.

    Args:
        size: rows and columns.
        max_turns: turns of an episode; one that takes more is cut, and pays nothing.
        skill: what a warm start imitates: the chance that a move of a demonstration is one of the shortest path;
            others are drawn at random. 0 teaches the words and nothing else.
        penalty: reward of a turn that is no move.
        shaped: reward of taking the key.
        workers, timeout: see ``EnvironmentTask``.
    """

    def __init__(
        self,
        *,
        size: Annotated[int, Field(ge=2, le=20)] = 5,
        max_turns: Turns = 16,
        skill: Annotated[float, Field(ge=0, le=1)] = 0.3,
        penalty: float = 0.0,
        shaped: float = 0.0,
        workers: int = 0,
        timeout: Seconds = 60.0,
    ) -> None:
        super().__init__(max_turns=max_turns, workers=workers, timeout=timeout)
        self.size, self.skill, self.penalty, self.shaped = size, skill, penalty, shaped

    def environment(self) -> Callable[[], KeyDoor]:
        """One grid."""
        return partial(KeyDoor, self.size, self.penalty, self.shaped)

    def train_batch(self, n: int, seed: int) -> list[Problem]:
        """Layouts that are not held out."""
        random, drawn = numpy_generator(seed, "gridtext"), []
        while len(drawn) < n:
            problem = self._layout(random)
            if not _held_out(problem):
                drawn.append(problem)
        return drawn

    def eval_problems(self, n: int) -> list[Problem]:
        """Held-out layouts, each once."""
        random, seen, since = numpy_generator(0, "gridtext", "held out"), {}, 0
        while len(seen) < n and since < 1000 + 100 * len(seen):  # by then one more would have been met
            problem = self._layout(random)
            since = 0 if _held_out(problem) and problem.task_id not in seen else since + 1
            if since == 0:
                seen[problem.task_id] = problem
        if len(seen) == n:
            return list(seen.values())
        raise TaskError(
            f"task 'gridtext' of size {self.size} has few held-out layouts: found {len(seen)} of the {n} that "
            "evaluation.problems asks for; ask for fewer, or set a larger size"
        )

    def corpus(self) -> Iterable[str]:
        """Every word that can be seen or said."""
        yield " ".join([*MOVES, *map(str, range(self.size)), "key door level straight . the is open"])

    def _layout(self, random: np.random.Generator) -> Problem:
        cells = random.choice(self.size**2, size=3, replace=False).tolist()
        at, key, door = (divmod(cell, self.size) for cell in cells)
        return Problem(
            task_id=derive(0, "gridtext", self.size, *cells),
            prompt=describe(at, key, has=False),
            start=(at, key, door),
            metadata={"steps": _distance(at, key) + _distance(key, door)},
            episode=self._demonstration(at, key, door, random),
        )

    def _demonstration(self, at: Cell, key: Cell, door: Cell, random: np.random.Generator) -> tuple[str, ...]:
        grid = KeyDoor(self.size)
        grid.reset(Problem(0, start=(at, key, door)), 0)
        said: list[str] = []
        for _ in range(self.max_turns):
            good = random.random() < self.skill
            said.append(str(random.choice(grid.towards() if good else list(MOVES))))
            heard = grid.step(said[-1])
            if heard.terminated:
                return tuple(said)
            said.append(heard.observation)
        return tuple(said[:-1])


def _held_out(problem: Problem) -> bool:
    return problem.task_id % 5 == 0


def _distance(here: Cell, there: Cell) -> int:
    return abs(here[0] - there[0]) + abs(here[1] - there[1])
