"""Rewards of how long something is."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from guerdon.errors import RecipeError, nearest
from guerdon.registry import register
from guerdon.rewards.base import reward


def window(length: float, low: float, high: float, *, margin: float = 0.0) -> float:
    """1 inside [low, high], 0 outside, with a linear shoulder of width ``margin`` on both sides if asked for.

    1 for low <= L <= high;  (L - (low - margin)) / margin below, the mirror of it above;  0 beyond

    Args:
        length: L, in the unit of the bounds.
        low, high: the window.
        margin: width of the shoulders; 0 for hard edges.

    Raises:
        ValueError: when the window is empty or the margin negative.
    """
    if low > high or margin < 0:
        raise ValueError(f"window [{low}, {high}] with margin {margin}; wanted low <= high and margin >= 0")
    outside = max(low - length, length - high, 0.0)
    if margin == 0:
        return float(outside == 0)
    return max(0.0, 1.0 - outside / margin)


@reward(paper="Zhu et al. 2026, arXiv 2601.06993")
def think_length_window(
    text: str,
    *,
    low: Annotated[float, Field(ge=0)] = 10,
    high: Annotated[float, Field(ge=0)] = 100,
    margin: Annotated[float, Field(ge=0)] = 0.0,
    opening: str = "<think>",
    closing: str = "</think>",
) -> float:
    """Reward 1 for a thought whose length in characters lies inside a window.

    see ``window``; a text without a whole thought gets 0, whatever the window

    Args:
        text: what the policy wrote; its first thought counts, without the marks and the space around it.
        low, high: the window, in characters. The source studies windows from 10 to 100.
        margin: width of the linear shoulders; the source studies 10. 0 for hard edges.
        opening, closing: the marks of a thought.

    Source: Zhu et al. 2026, arXiv 2601.06993.
    """
    thought = re.search(f"{re.escape(opening)}(.*?){re.escape(closing)}", text, re.DOTALL)
    return 0.0 if thought is None else window(len(thought[1].strip()), low, high, margin=margin)


@register("shaping", paper="Shen et al. 2025, arXiv 2504.07615")
def cosine_length(
    reward: Tensor,
    components: Tensor,
    component_names: Sequence[str],
    length: Tensor,
    *,
    correct: str,
    threshold: float = 0.7,
    right: tuple[float, float] = (1.0, 0.5),
    wrong: tuple[float, float] = (0.0, -0.5),
    longest: Annotated[int, Field(ge=1)] = 1024,
    weight: float = 1.0,
) -> Tensor:
    """Add a reward that falls with length, along half a cosine, from other ends for right answers than for wrong ones.

    r <- r + weight (b + (a - b) (1 + cos(pi min(1, L / longest))) / 2)
    (a, b) = right if r_correct >= threshold, else wrong

    Args:
        reward: (N,) outcome, of an earlier shaping method.
        components: (N,K) raw rewards.
        component_names: their names.
        length: (N,) number L of actions.
        correct: name of the reward that tells right from wrong; where it is NaN, nothing is added.
        threshold: least value of it that counts as right.
        right, wrong: what is added at length 0, and from ``longest`` on.
        longest: actions.
        weight: factor of what is added.

    Returns:
        (N,) reward.

    Raises:
        RecipeError: when no reward is called ``correct``.

    Source: Shen et al. 2025, arXiv 2504.07615. (The released code takes every answer for a right one, and the cosine
    beyond ``longest`` rises again; neither is so here.)
    """
    names = list(component_names)
    if correct not in names:
        raise RecipeError(f"cosine_length: no reward is called '{correct}'{nearest(correct, names)}")
    score = components[:, names.index(correct)]
    start, end = (torch.where(score >= threshold, a, b) for a, b in zip(right, wrong, strict=True))
    fallen = (1 - torch.cos(math.pi * (length / longest).clamp(max=1.0))) / 2
    return torch.where(score.isnan(), reward, reward + weight * (start + (end - start) * fallen))
