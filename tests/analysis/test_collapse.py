import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.analysis.collapse import discriminability

quick = settings(derandomize=True, deadline=None, max_examples=40)


def test_by_hand():
    reward = torch.tensor([0.0, 2.0, 5.0, 5.0, 5.0, 9.0])
    group = torch.tensor([7, 7, 1, 1, 1, 3])
    seen = discriminability(reward, group, torch.tensor([0, 1, 1, 0, 0, 1]).bool())
    assert seen.spread == pytest.approx((2**0.5 + 0.0) / 2), "the group of one has no spread to count"
    # pairs (good, bad): 2 beats 0; 5 beats 0 and ties 5, 5; 9 beats all
    assert seen.auc == pytest.approx((1 + 0 + 0 + 1 + 0.5 + 0.5 + 3) / 9)


def test_what_cannot_be_known_is_nan():
    lone = discriminability(torch.ones(2), torch.tensor([0, 1]))
    assert math.isnan(lone.spread)
    assert math.isnan(lone.auc)
    assert math.isnan(discriminability(torch.ones(2), torch.zeros(2).long(), torch.ones(2).bool()).auc)


@quick
@given(
    st.lists(st.tuples(st.floats(-3, 3), st.integers(0, 2), st.booleans()), min_size=2, max_size=12),
    st.randoms(use_true_random=False),
)
def test_order_does_not_matter_and_the_auc_counts_pairs(rows, random):
    reward, group, good = (torch.tensor(column) for column in zip(*rows, strict=True))
    seen = discriminability(reward.double(), group, good)
    mixed = torch.tensor(random.sample(range(len(rows)), len(rows)))
    again = discriminability(reward.double()[mixed], group[mixed], good[mixed])
    assert again == pytest.approx(seen, nan_ok=True)
    above, below = reward.double()[good].unsqueeze(1), reward.double()[~good]
    pairs = ((above > below) + 0.5 * (above == below)).mean().item()
    assert seen.auc == pytest.approx(pairs, nan_ok=True)
