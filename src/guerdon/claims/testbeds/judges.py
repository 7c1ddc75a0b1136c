"""Judges with known truth: what they should say is known exactly, so is how often they err."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def noise(*keys: Tensor, salt: int = 0) -> Tensor:
    """Standard normal numbers that are a function of uniform ones in [0,1), and look independent of one another.

    A judge asked twice gives the same answer, and seeds that are trained together don't share their noise.
    """
    mixed = _scramble(torch.full((1,), salt))
    for key in keys:
        mixed = _scramble(mixed ^ (key.double() * 2**53).long())
    return torch.special.ndtri(((mixed >> 11).double() + 2**52 + 0.5) / 2**53)


def _scramble(x: Tensor) -> Tensor:
    """Mix the bits of 64-bit integers, as splitmix64 does."""
    x = x + 0x1E3779B97F4A7C15
    x = (x ^ _shifted(x, 30)) * -0x40A7B892E31B1A47
    x = (x ^ _shifted(x, 27)) * -0x6B2FB644ECCEEE15
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Shift right without the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


@dataclass(frozen=True)
class SkillJudge:
    """Compares rows of latent skill, or scores them one by one, with noise.

    Attributes:
        skill: (N,) what the judge should see.
        key: (N,) uniform numbers from which its noise is made.
        pair_noise: standard deviation of the difference of skills as it sees it, over both orders together.
        bias: how much skill it adds to whoever stands first.
    """

    skill: Tensor
    key: Tensor
    pair_noise: float = 1.0
    bias: float = 0.0

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        """(m,2) scores around 5 that differ by a tenth of the difference seen, within 0 to 10 up to 50 skills apart."""
        each = self.pair_noise * 2**0.5  # two independent looks at a pair have the mean's noise
        seen = self.skill[first] - self.skill[second] + self.bias + each * noise(self.key[first], self.key[second])
        return torch.stack([5 + 0.05 * seen, 5 - 0.05 * seen], dim=1)

    def pointwise(self, *, slope: float = 0.05, spread: float = 0.3) -> Tensor:
        """(N,) scores of each row alone: slope * skill, plus noise."""
        return slope * self.skill + spread * noise(self.key, salt=1)


def share_of_letters(prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> list[tuple[float, float]]:
    """Judge of the word game: how many letters of the reversed last word stand where they belong, from 0 to 10."""
    wanted = [prompt.split()[-1][::-1] if prompt.split() else "" for prompt in prompts]
    return [(_right(word, a), _right(word, b)) for word, a, b in zip(wanted, first, second, strict=True)]


def closeness(text: Sequence[str], reference: Sequence[str], dimensions: Sequence[str]) -> list[list[float]]:
    """Rubric judge of the word game: the same share, from 1 to 5, on every dimension."""
    return [[1 + 0.4 * _right(b, a)] * len(dimensions) for a, b in zip(text, reference, strict=True)]


def _right(word: str, text: str) -> float:
    return 10 * sum(a == b for a, b in zip(word, text, strict=False)) / max(len(word), len(text), 1)
