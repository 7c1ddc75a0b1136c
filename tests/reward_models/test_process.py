import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from guerdon.reward_models.process import PrefixTokenRM, outcome_loss, prefix_means


def test_prefix_means_by_hand():
    logits = torch.tensor([[1.0, 9.0, 2.0, 6.0], [4.0, -2.0, 9.0, 9.0]])
    mask = torch.tensor([[1, 0, 1, 1], [1, 1, 0, 0]]).bool()
    assert prefix_means(logits, mask).tolist() == [[1.0, 0.0, 1.5, 3.0], [4.0, 1.0, 0.0, 0.0]]


@given(st.integers(0, 10_000))
def test_means_and_loss_read_nothing_off_the_mask(seed):
    g = torch.Generator().manual_seed(seed)
    logits, mask = torch.randn(5, 6, generator=g, dtype=torch.float64), torch.rand(5, 6, generator=g) < 0.6
    right = torch.rand(5, generator=g) < 0.5
    noise = torch.where(mask, logits, float("nan"))
    assert torch.equal(prefix_means(logits, mask), prefix_means(noise, mask))
    assert torch.equal(outcome_loss(logits, mask, right), outcome_loss(noise, mask, right))
    for row in range(5):
        kept = logits[row][mask[row]]
        means = [kept[: i + 1].mean().item() for i in range(len(kept))]
        assert prefix_means(logits, mask)[row][mask[row]].tolist() == pytest.approx(means)


def test_loss_is_cross_entropy_of_the_mean_logit_over_answers_with_a_token():
    logits = torch.tensor([[2.0, 0.0], [1.0, 5.0], [7.0, 7.0]])
    mask = torch.tensor([[1, 1], [1, 0], [0, 0]]).bool()
    loss = outcome_loss(logits, mask, torch.tensor([True, False, True]))
    assert loss.item() == pytest.approx((math.log1p(math.exp(-1)) + math.log1p(math.exp(1))) / 2, abs=1e-6)
    assert outcome_loss(logits, torch.zeros(3, 2), torch.tensor([True] * 3)).item() == 0.0


@pytest.mark.parametrize("hidden", [0, 8])
def test_it_begins_at_one_half_and_learns_which_token_decides(hidden):
    torch.manual_seed(0)
    model = PrefixTokenRM(4, hidden)
    features = torch.randn(256, 5, 4)
    assert model(features).abs().max() == 0
    right = features[:, :, 0].mean(dim=1) > 0
    mask = torch.ones(256, 5).bool()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(200):
        loss = outcome_loss(model(features), mask, right)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    fresh = torch.randn(256, 5, 4)
    said = model(fresh).mean(dim=1) > 0
    assert (said == (fresh[:, :, 0].mean(dim=1) > 0)).float().mean() > 0.9
