"""Counting squares of a colour in a picture. Small enough to be learned in a minute."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import numpy as np
from pydantic import Field

from guerdon.errors import RecipeError
from guerdon.registry import register
from guerdon.rewards.verifiable import exact
from guerdon.seeding import derive
from guerdon.tasks.base import Problem
from guerdon.tasks.generated import GeneratedTask
from guerdon.tasks.pictures import Illustrated

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 50, 40),
    "green": (40, 190, 70),
    "blue": (50, 80, 230),
    "yellow": (230, 210, 50),
    "white": (235, 235, 235),
}
CELL = 8  # pixels
_DARK = 30  # the background is darker than that
_SHADE = 25  # and by so much a square may be lighter or darker than its colour


@register("task", "image_count")
class ImageCount(GeneratedTask):
    """Say how many squares of a colour a picture shows.

    A picture has ``size`` x ``size`` cells of 8 x 8 pixels, some of which hold a square, smaller than the cell, in one
    of the colours; the prompt is the picture and the name of a colour, the answer a number. The reward ``task`` is 1
    for the right number. Pictures are drawn anew for every batch; which layouts are held out is decided by
    ``eval_fraction``, for all colours that a layout can be asked for.

    Args:
        size: cells in a row and in a column.
        colours: how many colours there are, from red, green, blue, yellow and white.
        filled: chance that a cell holds a square.
        eval_fraction: share of layouts that is held out.

    Raises:
        RecipeError: when ``eval_fraction`` leaves nothing on one side.
    """

    name = "image_count"

    def __init__(
        self,
        *,
        size: Annotated[int, Field(ge=2, le=32)] = 3,
        colours: Annotated[int, Field(ge=1, le=len(COLOURS))] = 3,
        filled: Annotated[float, Field(gt=0, le=1)] = 0.75,
        eval_fraction: float = 0.2,
    ) -> None:
        super().__init__(0, eval_fraction)
        if colours == 1 and filled == 1:
            raise RecipeError("task 'image_count': one colour in every cell makes every picture alike; fill fewer")
        self.size, self.filled = size, filled
        self.colours = tuple(COLOURS)[:colours]
        self.scorer = exact

    def draw(self, generator: np.random.Generator) -> tuple[Problem, str]:
        """A picture and a colour; what is asked for is the layout."""
        shape = (self.size, self.size)
        layout = np.where(generator.random(shape) < self.filled, generator.integers(1, len(self.colours) + 1, shape), 0)
        asked = int(generator.integers(len(self.colours)))
        pixels = render(layout, [COLOURS[name] for name in self.colours], generator)
        text = "".join(map(str, layout.flatten().tolist()))
        colour = self.colours[asked]
        problem = Problem(
            task_id=derive(0, self.name, self.size, colour, text),
            prompt=Illustrated(colour, [pixels]),
            answer=str(int((layout == asked + 1).sum())),
            metadata={"colour": colour, "squares": int((layout > 0).sum())},
        )
        return problem, text

    def corpus(self) -> Iterable[str]:
        """The names of the colours; numerals are in every vocabulary."""
        yield " ".join(self.colours)
        yield " ".join(map(str, range(self.size**2 + 1)))


def render(layout: np.ndarray, colours: list[tuple[int, int, int]], generator: np.random.Generator) -> np.ndarray:
    """Draw squares of random sizes, places and shades.

    Args:
        layout: (R,C) of each cell, 0 for none or 1 + the index of its colour.
        colours: of the squares.
        generator: of what is random.

    Returns:
        (8 R, 8 C, 3) uint8.
    """
    rows, columns = layout.shape
    image = generator.integers(0, _DARK, (rows * CELL, columns * CELL, 3), dtype=np.uint8)
    side = generator.integers(CELL - 3, CELL, layout.shape)
    corner = (generator.random((2, rows, columns)) * (CELL - side + 1)).astype(int)
    shade = generator.integers(-_SHADE, _SHADE + 1, (rows, columns, 3))
    for row, column in np.argwhere(layout > 0).tolist():
        top, left = row * CELL + corner[0, row, column], column * CELL + corner[1, row, column]
        colour = np.clip(colours[layout[row, column] - 1] + shade[row, column], 0, 255)
        image[top : top + side[row, column], left : left + side[row, column]] = colour
    return image
