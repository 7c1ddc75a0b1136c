"""Rewards of how long something is."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field

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
