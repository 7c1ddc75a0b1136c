import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.objectives import categorical_entropy, entropy

INF = float("inf")


def test_entropy_by_hand():
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [math.log(3), 0.0, -INF, -INF], [5.0, -INF, -INF, -INF]])
    expected = [math.log(4), math.log(4) - 0.75 * math.log(3), 0.0]
    torch.testing.assert_close(categorical_entropy(logits), torch.tensor(expected))


@settings(derandomize=True, deadline=None, max_examples=40)
@given(st.lists(st.floats(-50, 50), min_size=2, max_size=6), st.floats(-1e4, 1e4))
def test_agrees_with_the_distribution_and_ignores_a_common_shift(logits, shift):
    logits = torch.tensor(logits, dtype=torch.float64)
    expected = torch.distributions.Categorical(logits=logits).entropy()
    torch.testing.assert_close(categorical_entropy(logits), expected)
    torch.testing.assert_close(categorical_entropy(logits + shift), expected, atol=1e-9, rtol=1e-7)


def test_gradient_with_forbidden_and_certain_outcomes():
    logits = torch.tensor([[1.0, -INF, 0.2], [800.0, 0.0, -800.0]], dtype=torch.float64, requires_grad=True)
    categorical_entropy(logits).sum().backward()
    assert logits.grad.isfinite().all()
    assert logits.grad[0, 1] == 0
    free = torch.tensor([1.0, 0.2], dtype=torch.float64, requires_grad=True)
    categorical_entropy(free).backward()
    torch.testing.assert_close(logits.grad[0, [0, 2]], free.grad)
    assert torch.autograd.gradcheck(categorical_entropy, free)


def test_the_term_rewards_entropy_on_actions_only():
    mask = torch.tensor([[True, True, False], [True, False, False]])
    values = torch.tensor([[1.0, 2.0, float("nan")], [6.0, INF, -INF]], requires_grad=True)
    loss, stats = entropy(values, mask, beta=0.5)
    assert loss.item() == -1.5
    assert stats == {"entropy": 3.0}
    loss.backward()
    torch.testing.assert_close(values.grad, -0.5 / 3 * mask)
    assert entropy(values, mask, beta=1.0, aggregate="seq_mean")[0].item() == -3.75
    assert entropy(values, mask, beta=1.0, aggregate="sum_over_max_length", max_length=9)[0].item() == -0.5


def test_default_weight_and_an_empty_mask():
    values = torch.ones(2, 3)
    assert entropy(values, torch.ones(2, 3))[0].item() == pytest.approx(-0.01)
    loss, stats = entropy(values * float("nan"), torch.zeros(2, 3))
    assert loss.item() == stats["entropy"] == 0
