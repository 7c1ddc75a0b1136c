"""What a bad start of RL looks like: answers that shrink at once, and a reward that falls before it rises."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Series = Sequence[float] | np.ndarray


class LengthCollapse(NamedTuple):
    """How far answers shrink early on.

    Attributes:
        found: whether they lost more than was asked about.
        drop: share of the first length that is lost at the lowest point; 0 if they only grew.
        step: where that is.
    """

    found: bool
    drop: float
    step: int


class HockeyStick(NamedTuple):
    """How a reward falls and recovers.

    Attributes:
        found: whether it fell below where it began, and rose past that later.
        dip: how far it fell.
        lowest: the step where it was lowest, before it came back if it did.
        back: the first step after that at which it is past its beginning; nan if it never is.
    """

    found: bool
    dip: float
    lowest: int
    back: float


def length_collapse(length: Series, *, first: int = 20, drop: float = 0.2, window: int = 1) -> LengthCollapse:
    """Whether the mean length falls by more than a share of its beginning within the first steps.

    drop = 1 - min_{t <= first} L_t / L_0,  L_t the mean over ``window`` steps from t on

    Args:
        length: mean length of the answers of each step.
        first: steps that count as early.
        drop: share that must be lost.
        window: steps that are averaged.

    Raises:
        ValueError: when there are fewer steps than the window.

    Source: Balanced Actor Initialization. (The thresholds are ours.)
    """
    smooth = _smooth(length, window)
    early = smooth[: first + 1]
    step = int(np.argmin(early))
    lost = max(1 - float(early[step]) / float(smooth[0]), 0.0) if smooth[0] > 0 else 0.0
    return LengthCollapse(lost > drop, lost, step)


def hockey_stick(reward: Series, *, margin: float = 0.0, window: int = 1) -> HockeyStick:
    """Whether a reward first falls below its beginning and then recovers past it.

    Args:
        reward: mean reward of each step.
        margin: how far it must fall, and how far it must rise past its beginning.
        window: steps that are averaged.

    Raises:
        ValueError: when there are fewer steps than the window.

    Source: Balanced Actor Initialization. (The thresholds are ours.)
    """
    smooth = _smooth(reward, window)
    start = float(smooth[0])
    below = np.flatnonzero(smooth < start - margin)
    past = np.flatnonzero(smooth > start + margin)
    fell = int(below[0]) if len(below) else len(smooth)
    after = past[past > fell]
    until = int(after[0]) if len(after) else len(smooth)
    lowest = int(np.argmin(smooth[:until] if len(below) else smooth[:1]))
    dip = start - float(smooth[lowest])
    return HockeyStick(bool(len(below) and len(after)), dip, lowest, float(after[0]) if len(after) else math.nan)


def _smooth(series: Series, window: int) -> np.ndarray:
    values = np.asarray(series, dtype=np.float64)
    if window < 1 or len(values) < window:
        raise ValueError(
            f"got {len(values)} steps and a window of {window}, want at least as many steps, and 1 or more"
        )
    return np.convolve(values, np.full(window, 1 / window), mode="valid") if window > 1 else values
