"""A game of two cards that are seen as an image: a network names what it sees, and then says the sum."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from guerdon.claims.testbeds.sequences import Writing

GLYPHS = (
    "xxx x.x x.x x.x xxx",
    ".x. xx. .x. .x. xxx",
    "xxx ..x xxx x.. xxx",
    "xxx ..x xxx ..x xxx",
    "x.x x.x xxx ..x ..x",
    "xxx x.. xxx ..x xxx",
    "xxx x.. xxx x.x xxx",
    "xxx ..x .x. .x. .x.",
)
HEIGHT, WIDTH = 5, 7
LENGTH, THOUGHT = 3, 2  # symbols of an answer, and how many of them are the thought


@dataclass(frozen=True)
class Cards:
    """Two cards; the right action is their sum modulo ``values``.

    A state is a number; an answer is the value of either card, which is the thought, and the sum, which is the action.

    Attributes:
        values: of cards, from 0 to 7 at most.
    """

    values: int = 6

    @functools.cached_property
    def states(self) -> Tensor:
        """(P,1) all states."""
        return torch.arange(self.values**2).unsqueeze(1)

    @functools.cached_property
    def images(self) -> Tensor:
        """(P, height, width) in [0,1]: the two cards side by side."""
        glyphs = np.asarray([[[c == "x" for c in row] for row in glyph.split()] for glyph in GLYPHS], dtype=np.float32)
        out = np.zeros((self.values**2, HEIGHT, WIDTH), dtype=np.float32)
        for state in range(self.values**2):
            out[state, :, :3], out[state, :, 4:] = glyphs[state // self.values], glyphs[state % self.values]
        return torch.from_numpy(out)

    def answers(self, state: Tensor) -> Tensor:
        """(...,3) the right answer to states (...,1)."""
        first, second = state // self.values, state % self.values
        return torch.cat([first, second, (first + second) % self.values], dim=-1)

    def writing(self) -> Writing:
        """The task of the networks: before each symbol they see the image and the symbols so far."""
        place = torch.arange(LENGTH + 1)
        before = (torch.arange(LENGTH) < place.unsqueeze(1)).unsqueeze(-1)
        pixels = self.images.flatten(1)

        def observe(prompt: Tensor, tokens: Tensor) -> Tensor:
            seen = pixels[prompt[..., 0]].unsqueeze(-2).expand(-1, -1, LENGTH + 1, -1)
            known = (one_hot(tokens, self.values).unsqueeze(2) * before).flatten(-2)
            places = one_hot(place, LENGTH + 1).expand(*tokens.shape[:2], -1, -1)
            return torch.cat([seen, known.float(), places.float()], dim=-1)

        return Writing(self.values, LENGTH, HEIGHT * WIDTH + LENGTH * self.values + LENGTH + 1, observe)


def thought_text(tokens: list[int]) -> str:
    """What is thought, in words."""
    return f"I see a {tokens[0]} and a {tokens[1]}"


def action_text(tokens: list[int]) -> str:
    """What is done, in words."""
    return f"say {tokens[2]}"


def thought_tokens(text: str) -> list[int]:
    """The symbols of a thought."""
    words = text.split()
    return [int(words[3]), int(words[6])]
