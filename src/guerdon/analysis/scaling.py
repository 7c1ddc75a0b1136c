"""How a result changes with what it is allowed to cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from scipy import stats

from guerdon.errors import GuerdonError


@dataclass(frozen=True)
class ThinkingCost:
    """Accuracy under several windows of thought.

    Attributes:
        windows: (low, high) lengths that were rewarded.
        length: mean length of the thoughts under each.
        accuracy: mean accuracy under each.
        spearman: rank correlation of accuracy with length; negative where thinking costs accuracy, nan where one of
            them does not vary.
        p_value: of that correlation, two-sided.
    """

    windows: tuple[tuple[float, float], ...]
    length: tuple[float, ...]
    accuracy: tuple[float, ...]
    spearman: float
    p_value: float


def cost_of_thinking(
    train: Callable[[float, float], tuple[float, float]], windows: Sequence[tuple[float, float]]
) -> ThinkingCost:
    """Train and evaluate the same task under windows of thought, and correlate accuracy with the length of thoughts.

    Args:
        train: takes a window (low, high) and returns the mean length of thoughts and the mean accuracy that training
            with it ended with. It should use the same seed for every window.
        windows: the grid; at least three.

    Raises:
        GuerdonError: when there are fewer than three windows, for two points always correlate.

    Source: Zhu et al. 2026, arXiv 2601.06993.
    """
    if len(windows) < 3:
        raise GuerdonError(f"cost_of_thinking has {len(windows)} windows, wanted at least 3 to correlate over")
    length, accuracy = zip(*(train(low, high) for low, high in windows), strict=True)
    if len(set(length)) == 1 or len(set(accuracy)) == 1:
        return ThinkingCost(tuple(windows), length, accuracy, float("nan"), float("nan"))
    correlation: Any = stats.spearmanr(length, accuracy)
    spearman, p_value = float(correlation.statistic), float(correlation.pvalue)
    return ThinkingCost(tuple(windows), length, accuracy, spearman, p_value)
