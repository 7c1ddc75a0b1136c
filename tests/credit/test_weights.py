import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.credit import dgpo, grpo
from guerdon.credit.weights import difficulty_weights, question_weight
from guerdon.curriculum.difficulty import difficulty_softmax


def batch(correct, size=8):
    """One group per entry, with so many right answers."""
    reward = torch.tensor([[float(i < c) for i in range(size)] for c in correct]).flatten()
    group = torch.arange(len(correct)).repeat_interleave(size)
    return reward, group, torch.ones(len(reward), 2, dtype=torch.bool)


def test_it_multiplies_by_the_published_weights():
    reward, group, mask = batch([1, 4, 7, 8, 0])
    before = grpo(reward, group, mask)
    after, stats = difficulty_weights(before, reward, group)
    weights = difficulty_softmax(torch.tensor([1 / 8, 1 / 2, 7 / 8]), temperature=2.0)
    for g, weight in enumerate(weights):
        assert torch.allclose(after[group == g], weight * before[group == g])
    assert (after[group >= 3] == 0).all()
    assert stats == pytest.approx({"largest": weights.max().item(), "smallest": weights.min().item()})


def test_after_an_even_credit_it_gives_dgpo():
    reward, group, mask = batch([1, 3, 6, 0])
    even = dgpo(reward, group, mask, temperature=1e9, token_mean="all")
    weighted, _ = difficulty_weights(even, reward, group, temperature=0.7)
    assert torch.allclose(weighted, dgpo(reward, group, mask, temperature=0.7, token_mean="all"), atol=1e-5)


def test_another_column_tells_the_difficulty():
    reward, group, mask = batch([4, 4])
    accuracy = torch.cat([torch.zeros(8), torch.tensor([1.0] * 6 + [float("nan"), 0.0])])
    components = torch.stack([reward, accuracy], dim=1)
    before = grpo(reward, group, mask)
    after, _ = difficulty_weights(before, reward, group, components, accuracy=1)
    # A group that never succeeds is not worth more than a solved one.
    weights = difficulty_softmax(torch.tensor([1.0, 0.75]))
    assert torch.allclose(after[:8], weights[0] * before[:8])
    assert torch.allclose(after[8:], weights[1] * before[8:])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_order_does_not_matter_and_silent_groups_keep_their_credit(correct, random):
    reward, group, mask = batch(correct, size=5)
    credit = grpo(reward, group, mask)
    after, stats = difficulty_weights(credit, reward, group)
    order = torch.tensor(random.sample(range(len(reward)), len(reward)))
    shuffled, _ = difficulty_weights(credit[order], reward[order], group[order])
    assert torch.allclose(shuffled, after[order], atol=1e-6)
    assert torch.isfinite(after).all()
    useful = (credit != 0).any(dim=1)
    weight = question_weight(reward, group, useful)
    assert (weight[~useful] == 1).all()
    if useful.any():
        assert weight[useful].mean().item() == pytest.approx(1.0, abs=1e-5)
        assert stats["largest"] >= 1 - 1e-6


def test_an_empty_batch_stays_empty():
    empty = torch.zeros(0)
    after, stats = difficulty_weights(torch.zeros(0, 3), empty, torch.zeros(0, dtype=torch.int64))
    assert after.shape == (0, 3)
    assert stats == {}
