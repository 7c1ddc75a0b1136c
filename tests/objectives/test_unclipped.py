import pytest
import torch

from guerdon.objectives.policy import reinforce
from guerdon.objectives.unclipped import opmd
from guerdon.registry import get


def test_value_and_gradient_by_hand():
    logp = torch.tensor([[-1.0, -2.0], [-3.0, float("nan")]], requires_grad=True)
    mask = torch.tensor([[True, True], [True, False]])
    loss, stats = opmd(logp, torch.tensor([[1.0, 1.0], [-0.5, 9.0]]), mask, tau=1.0)
    assert loss.item() == pytest.approx((1 + 2 - 1.5) / 3 / 2)
    assert stats["credit"] == pytest.approx(0.5)
    loss.backward()
    assert torch.allclose(logp.grad, torch.tensor([[-1 / 6, -1 / 6], [1 / 12, 0.0]]))


def test_tau_zero_is_reinforce():
    generator = torch.Generator().manual_seed(0)
    logp, advantage = (torch.randn(3, 4, generator=generator) for _ in range(2))
    mask = torch.rand(3, 4, generator=generator) < 0.7
    assert torch.equal(opmd(logp, advantage, mask, tau=0.0)[0], reinforce(logp, advantage, mask))


def test_who_sampled_an_action_does_not_matter():
    generator = torch.Generator().manual_seed(1)
    logp, advantage = (torch.randn(3, 4, generator=generator) for _ in range(2))
    mask = torch.ones(3, 4, dtype=torch.bool)
    external = torch.tensor([[True] * 4, [False] * 4, [True, False, True, False]])
    assert opmd(logp, advantage, mask, external) == opmd(logp, advantage, mask)
    assert "external" in get("objective", opmd).optional, "or recipes would hide external rows from it"


def test_nothing_to_learn_from():
    logp = torch.zeros(2, 3, requires_grad=True)
    opmd(logp, torch.ones(2, 3), torch.zeros(2, 3, dtype=torch.bool))[0].backward()
    assert not logp.grad.any()
