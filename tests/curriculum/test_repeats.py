import pytest
import torch

from guerdon.curriculum.difficulty import repeats_by_pass_rate


def test_ranges_by_hand():
    rate = torch.tensor([0.0, 0.19, 0.2, 0.59, 0.6, 0.79, 0.8, 1.0])
    assert repeats_by_pass_rate(rate).tolist() == [6, 6, 4, 4, 2, 2, 0, 0]
    assert repeats_by_pass_rate(rate, bounds=[0.5], repeats=[3], otherwise=1).tolist() == [3, 3, 3, 1, 1, 1, 1, 1]


def test_bounds_rise_and_are_as_many_as_repeats():
    for bounds, repeats in (([0.5, 0.5], [2, 1]), ([0.5], [2, 1])):
        with pytest.raises(ValueError, match="one rising bound for each"):
            repeats_by_pass_rate(torch.zeros(1), bounds=bounds, repeats=repeats)
