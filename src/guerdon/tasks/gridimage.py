"""The grid of ``gridtext`` as a picture: find the key, open the door."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Annotated

import numpy as np
from pydantic import Field

from guerdon.registry import register
from guerdon.tasks.base import Problem
from guerdon.tasks.environments import Turns
from guerdon.tasks.gridtext import MOVES, Cell, GridText, KeyDoor
from guerdon.tasks.pictures import MARK, Illustrated

CELL = 8  # pixels
_GROUND, _WALKER, _KEY, _DOOR = (20, 20, 20), (230, 230, 230), (230, 200, 40), (200, 60, 60)


class KeyDoorPicture(KeyDoor):
    """One grid that is seen as a picture, and nothing else."""

    def _seen(self) -> str:
        key = None if self._has else self._key
        return Illustrated(MARK, [draw_grid(self._size, self._at, self._door, key)])


def draw_grid(size: int, at: Cell, door: Cell, key: Cell | None) -> np.ndarray:
    """Draw a grid: a white walker, a red door, and a yellow key, which the walker wears once it is taken.

    Args:
        size: rows and columns.
        at, door: cells of walker and door.
        key: cell of the key, or None when it was taken.

    Returns:
        (8 size, 8 size, 3) uint8.
    """
    image = np.empty((size * CELL, size * CELL, 3), dtype=np.uint8)
    image[:] = _GROUND
    _fill(image, door, 0, _DOOR)
    if key is not None:
        _fill(image, key, 2, _KEY)
    _fill(image, at, 1, _WALKER)
    if key is None:
        _fill(image, at, 2, _KEY)
    return image


def _fill(image: np.ndarray, cell: Cell, margin: int, colour: tuple[int, int, int]) -> None:
    """Fill a cell but for a margin; what lay there before is seen around it."""
    rows, columns = (slice(x * CELL + margin, (x + 1) * CELL - margin) for x in cell)
    image[rows, columns] = colour


@register("task", name="gridimage")
class GridImage(GridText):
    """A grid of ``size`` x ``size`` cells in which a key and then a door must be reached, seen as a picture.

    An observation is an image of 8 x 8 pixels a cell: the walker is white, the key yellow, the door red; who has the
    key wears it. Grids, moves, rewards and demonstrations are those of ``gridtext``. Environments live in the trainer's
    process, for images do not leave it.

    Args:
        size: rows and columns.
        max_turns: turns of an episode; one that takes more is cut, and pays nothing.
        skill: what a warm start imitates: the chance that a move of a demonstration is one of the shortest path.
        penalty: reward of a turn that is no move.
        shaped: reward of taking the key.
    """

    def __init__(
        self,
        *,
        size: Annotated[int, Field(ge=2, le=20)] = 4,
        max_turns: Turns = 12,
        skill: Annotated[float, Field(ge=0, le=1)] = 0.3,
        penalty: float = 0.0,
        shaped: float = 0.0,
    ) -> None:
        super().__init__(size=size, max_turns=max_turns, skill=skill, penalty=penalty, shaped=shaped)

    def environment(self) -> Callable[[], KeyDoorPicture]:
        """One grid."""
        return partial(KeyDoorPicture, self.size, self.penalty, self.shaped)

    def corpus(self) -> Iterable[str]:
        """Every word that can be said."""
        yield " ".join([*MOVES, "the door is open ."])

    def _layout(self, random: np.random.Generator) -> Problem:
        problem = super()._layout(random)
        grid = self.environment()()
        begun = grid.reset(problem, 0)
        moves = problem.episode[::2]
        said = [grid.step(move).observation for move in moves[:-1]]
        episode = [text for turn in zip(moves, said, strict=False) for text in turn]
        return replace(problem, prompt=begun.observation, episode=(*episode, *moves[-1:]))
