"""Small pages of a graphical interface, drawn as images, which a network works through action by action."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot, pad

from guerdon.claims.testbeds.sequences import Writing
from guerdon.rewards.gui_action import ARGUMENTS, DIRECTIONS
from guerdon.seeding import numpy_generator

HEIGHT, WIDTH, COLOURS = 8, 6, 4
BAR = 2  # rows of the title bar
WORDS = ("milk", "bread", "tea", "salt")
NUMBERS = ("one", "two", "three", "four")
KINDS = ("click", "type", "scroll", "answer")  # what is to be done on each page


@dataclass(frozen=True)
class Pages:
    """Tasks of one, three and six pages: find the widget of a colour, type a word, scroll, answer.

    A problem is (level, goal, layout). Page t of a task is the same whatever its length, so long tasks begin like short
    ones. A page shows four widgets of 2 x 2 cells at places that depend on the layout, and a title bar that says which
    page it is. A wrong action ends the task: the screen stays blank.

    Attributes:
        lengths: pages of each level.
        layouts: how many there are.
    """

    lengths: tuple[int, ...] = (1, 2, 4)
    layouts: int = 3

    @functools.cached_property
    def actions(self) -> list[dict[str, Any]]:
        """What each symbol does."""
        points = [{"action": "click", "point": [x, y]} for y in range(HEIGHT) for x in range(WIDTH)]
        texts = [{"action": "type", "text": word} for word in WORDS]
        scrolls = [{"action": "scroll", "direction": direction} for direction in DIRECTIONS]
        return [*points, *texts, *scrolls, *({"action": "answer", "text": number} for number in NUMBERS)]

    @functools.cached_property
    def texts(self) -> list[str]:
        """How each symbol is written."""
        return [json.dumps(action) for action in self.actions]

    @functools.cached_property
    def corner(self) -> np.ndarray:
        """(pages, layouts, colours, 2) left and top of each widget."""
        draw, places = numpy_generator(0, "pages"), [(x, y) for y in range(BAR, HEIGHT, 2) for x in range(0, WIDTH, 2)]
        return np.asarray(
            [[[places[i] for i in draw.permutation(9)[:COLOURS]] for _ in range(self.layouts)] for _ in KINDS]
        )

    @functools.cached_property
    def images(self) -> np.ndarray:
        """(pages, layouts, height, width, colours) in [0,1]."""
        out = np.zeros((len(KINDS), self.layouts, HEIGHT, WIDTH, COLOURS), dtype=np.float32)
        for page, layout, colour in np.ndindex(*self.corner.shape[:3]):
            x, y = self.corner[page, layout, colour]
            out[page, layout, y : y + 2, x : x + 2, colour] = 1
        for page in range(len(KINDS)):
            out[page, :, :BAR, page] = 1  # a column of the bar is lit
        return out

    def wanted(self, page: int, goal: int, layout: int) -> dict[str, Any]:
        """The reference action on a page."""
        kind, turned = KINDS[page], (goal + page) % COLOURS
        if kind == "click":
            x, y = (int(v) for v in self.corner[page, layout, turned])
            return {"action": kind, "box": [x, y, x + 1, y + 1]}
        values = {"type": WORDS, "scroll": DIRECTIONS, "answer": NUMBERS}[kind]
        return {"action": kind, ARGUMENTS[kind]: values[turned]}

    @functools.cached_property
    def problems(self) -> Tensor:
        """(P,3) all of them."""
        return torch.cartesian_prod(*(torch.arange(n) for n in (len(self.lengths), COLOURS, self.layouts)))

    @functools.cached_property
    def right(self) -> Tensor:
        """(pages, goals, layouts, symbols) which actions lead on."""
        out = torch.zeros(len(KINDS), COLOURS, self.layouts, len(self.actions), dtype=torch.bool)
        for page, goal, layout in np.ndindex(*out.shape[:3]):
            wanted = self.wanted(page, goal, layout)
            for symbol, action in enumerate(self.actions):
                if action["action"] == wanted["action"]:
                    if "box" in wanted:
                        (left, top, right, bottom), (x, y) = wanted["box"], action["point"]
                        out[page, goal, layout, symbol] = left <= x <= right and top <= y <= bottom
                    else:
                        out[page, goal, layout, symbol] = action == wanted
        return out

    def length(self, prompt: Tensor) -> Tensor:
        """(...) pages of problems (...,3)."""
        return torch.tensor(self.lengths)[prompt[..., 0]]

    def correct(self, prompt: Tensor, tokens: Tensor) -> Tensor:
        """(...,T) whether each action is the right one on its page, for problems (...,3) and symbols (...,T)."""
        page = torch.arange(tokens.shape[-1])
        return self.right[page, prompt[..., 1:2], prompt[..., 2:3], tokens]

    def mask(self, prompt: Tensor, tokens: Tensor) -> Tensor:
        """(...,T) whether each action was still part of the task."""
        before = pad(self.correct(prompt, tokens).long().cumprod(dim=-1)[..., :-1], (1, 0), value=1).bool()
        return before & (torch.arange(tokens.shape[-1]) < self.length(prompt).unsqueeze(-1))

    def chance(self, prompt: Tensor, log_probs: Tensor) -> Tensor:
        """(...) chance that a task is done, from log-probabilities (...,T,V) of actions on its pages."""
        page = torch.arange(len(KINDS))
        good = self.right[page, prompt[..., 1:2], prompt[..., 2:3]]
        each = (log_probs.exp() * good).sum(dim=-1)
        return torch.where(page < self.length(prompt).unsqueeze(-1), each, 1.0).prod(dim=-1)

    def solutions(self, prompt: Tensor) -> Tensor:
        """(...,T) a right action for every page."""
        page = torch.arange(len(KINDS))
        return self.right[page, prompt[..., 1:2], prompt[..., 2:3]].long().argmax(dim=-1)

    def writing(self) -> Writing:
        """The task of the networks: before each action they see the goal, and the image of the page or a blank one."""
        images = torch.from_numpy(self.images).flatten(2)

        def observe(prompt: Tensor, tokens: Tensor) -> Tensor:
            page = torch.arange(len(KINDS) + 1)
            on = pad(self.correct(prompt, tokens).long().cumprod(dim=-1), (1, 0), value=1)
            on = on * (page < self.length(prompt).unsqueeze(-1))
            screen = images[page.clamp(max=len(KINDS) - 1), prompt[..., 2:3]] * on.unsqueeze(-1)
            goal = one_hot(prompt[..., 1:2], COLOURS).expand(*screen.shape[:-1], COLOURS)
            return torch.cat([goal, screen], dim=-1).float()

        return Writing(len(self.actions), len(KINDS), COLOURS + images.shape[-1], observe)
