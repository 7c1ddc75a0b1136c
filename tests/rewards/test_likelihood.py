import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.registry import get
from guerdon.rewards.likelihood import low_prob_confidence

quick = settings(derandomize=True, deadline=None, max_examples=40)


def lengths_mask(*lengths):
    return torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)


def by_hand(row, share):
    """Independent form: sort a list, take the geometric mean of its head."""
    if not row:
        return 1.0
    lowest = sorted(row)[: math.ceil(round(share * len(row), 6))]
    return math.prod(math.exp(x) for x in lowest) ** (1 / len(lowest))


def test_only_the_least_likely_fifth_counts():
    probability = torch.tensor([[0.9, 0.5, 0.99, 0.2, 0.8, 0.95]])
    # 6 actions: ceil(1.2) = 2 of them, 0.2 and 0.5
    seen = low_prob_confidence(probability.log(), torch.ones(1, 6).bool())
    assert seen.item() == pytest.approx(math.sqrt(0.1), rel=1e-6)
    assert low_prob_confidence(probability.log(), torch.ones(1, 6).bool(), share=0.1).item() == pytest.approx(0.2)


@pytest.mark.parametrize(("share", "length", "count"), [(0.2, 5, 1), (0.2, 35, 7), (0.07, 100, 7), (0.28, 25, 7)])
def test_a_whole_number_of_actions_is_not_rounded_up(share, length, count):
    logp = -torch.arange(1.0, length + 1).unsqueeze(0)
    lowest = torch.arange(length - count + 1.0, length + 1)
    seen = low_prob_confidence(logp.double(), torch.ones(1, length).bool(), share=share)
    assert math.log(seen.item()) == pytest.approx(-lowest.mean().item())


@quick
@given(
    st.lists(st.lists(st.floats(-8, 0), max_size=9), min_size=1, max_size=5),
    st.sampled_from([0.05, 0.2, 0.5, 1.0]),
    st.integers(0, 3),
)
def test_rows_padding_and_masked_entries(rows, share, padding):
    width = max(len(row) for row in rows) + padding
    mask = torch.tensor([[t < len(row) for t in range(width)] for row in rows], dtype=torch.bool).reshape(
        len(rows), width
    )
    logp = torch.full(mask.shape, float("nan"), dtype=torch.float64)
    logp[mask] = torch.tensor([x for row in rows for x in row], dtype=torch.float64)
    seen = low_prob_confidence(logp, mask, share=share)
    assert seen.tolist() == pytest.approx([by_hand(row, share) for row in rows])


def test_an_empty_completion_is_certain_and_certainty_is_one():
    logp, mask = torch.tensor([[-5.0, -5.0], [0.0, 0.0]]), lengths_mask(0, 2)
    assert low_prob_confidence(logp, mask).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("share", [0.0, -0.1, 1.5])
def test_impossible_shares_are_refused(share):
    with pytest.raises(ValueError, match=f"share is {share}"):
        low_prob_confidence(torch.zeros(1, 1), torch.ones(1, 1).bool(), share=share)


def test_it_is_a_reward_of_the_whole_batch():
    method = get("reward", "low_prob_confidence")
    assert method.requires == ("old_logp", "mask")
    assert method.target.batched
