import math

import pytest

from guerdon.analysis.scaling import cost_of_thinking
from guerdon.errors import GuerdonError

WINDOWS = [(0, 10), (10, 20), (20, 40), (40, 80)]


def test_it_trains_under_every_window_and_correlates_ranks():
    seen = []

    def train(low, high):
        seen.append((low, high))
        return (low + high) / 2, {10: 0.9, 20: 0.7, 40: 0.8, 80: 0.1}[high]

    cost = cost_of_thinking(train, WINDOWS)
    assert seen == WINDOWS
    assert cost.length == (5, 15, 30, 60)
    assert cost.accuracy == (0.9, 0.7, 0.8, 0.1)
    assert cost.spearman == pytest.approx(1 - 6 * (9 + 0 + 0 + 9) / (4 * 15))  # ranks 4 2 3 1 against 1 2 3 4
    assert 0 < cost.p_value < 1


def test_no_correlation_without_variation_or_with_two_points():
    assert math.isnan(cost_of_thinking(lambda low, high: (high, 0.5), WINDOWS).spearman)
    with pytest.raises(GuerdonError, match="has 2 windows"):
        cost_of_thinking(lambda low, high: (high, 0.5), WINDOWS[:2])
