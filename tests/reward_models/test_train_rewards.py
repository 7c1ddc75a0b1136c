import pytest
import torch
from torch import nn

from guerdon.reward_models.train import FinitePolicy, category_rewards, irl_loss, ml_irl

EXPERT = torch.tensor([0.4, 0.25, 0.15, 0.1, 0.07, 0.03])


class Table(nn.Module):
    """One reward per answer."""

    def __init__(self):
        super().__init__()
        self.reward = nn.Parameter(torch.zeros(6))

    def forward(self, answers):
        return self.reward[answers]


def exact_demonstrations():
    """Answers in exactly the expert's proportions."""
    return torch.arange(6).repeat_interleave((EXPERT * 100).round().long())


def test_loss_by_hand():
    demonstrated = torch.tensor([1.0, 3.0], requires_grad=True)
    loss = irl_loss(demonstrated, torch.tensor([0.5, 0.5, 2.0]), beta=2.0)
    assert loss.item() == pytest.approx(-(2.0 - 1.0) / 2)
    loss.backward()
    assert demonstrated.grad.tolist() == [-0.25, -0.25]


def test_finite_policy_steps_towards_the_optimum():
    reference = torch.tensor([0.5, 0.3, 0.1, 0.05, 0.03, 0.02])
    model = Table()
    model.reward.data = torch.arange(6.0)
    policy = FinitePolicy(reference, beta=2.0)
    policy.improve(model)
    wanted = reference * (torch.arange(6.0) / 2).exp()
    torch.testing.assert_close(policy.logits.exp(), wanted / wanted.sum())
    slow = FinitePolicy(reference, beta=2.0, rate=0.5)
    slow.improve(model)
    half = reference * (torch.arange(6.0) / 4).exp()
    torch.testing.assert_close(slow.logits.exp(), half / half.sum())
    assert not policy.logits.requires_grad


def test_samples_follow_the_policy():
    policy = FinitePolicy(EXPERT, batch=20000, generator=torch.Generator().manual_seed(0))
    assert torch.bincount(policy.sample(), minlength=6) / 20000 == pytest.approx(EXPERT, abs=0.015)


@pytest.mark.parametrize("beta", [1.0, 0.5])
def test_the_reward_is_found_up_to_a_constant(beta):
    generator = torch.Generator().manual_seed(1)
    reference = torch.tensor([0.1, 0.1, 0.2, 0.2, 0.2, 0.2])
    policy = FinitePolicy(reference, batch=2000, generator=generator, beta=beta)
    model = Table()
    gaps = ml_irl(model, exact_demonstrations, policy, rounds=300, lr=0.05, beta=beta)
    wanted = beta * (EXPERT / reference).log()
    found = model.reward.detach()
    torch.testing.assert_close(found - found.mean(), wanted - wanted.mean(), atol=0.25 * beta, rtol=0)
    assert gaps[0] == 0.0
    assert max(gaps[1:20]) > 0.05 * beta
    assert abs(sum(gaps[-50:]) / 50) < 0.02 * beta


def test_several_reward_steps_and_decay():
    policy = FinitePolicy(torch.full((6,), 1 / 6), batch=500, generator=torch.Generator().manual_seed(0))
    model = Table()
    gaps = ml_irl(model, exact_demonstrations, policy, rounds=5, reward_steps=3, lr=0.1)
    assert len(gaps) == 5
    held = Table()
    ml_irl(held, exact_demonstrations, policy, rounds=5, reward_steps=3, lr=0.1, weight_decay=5.0)
    assert held.reward.norm() < model.reward.norm()


def test_each_category_has_a_reward_of_its_own():
    generator = torch.Generator().manual_seed(2)
    flat = torch.full((6,), 1 / 6)
    demonstrations = {"a": exact_demonstrations, "b": lambda: 5 - exact_demonstrations()}
    policies = {name: FinitePolicy(flat, batch=500, generator=generator) for name in demonstrations}
    models = category_rewards(Table, demonstrations, policies, rounds=150, lr=0.1)
    learned = {name: model.reward.detach() for name, model in models.items()}
    assert learned["a"].argmax() == 0
    assert learned["b"].argmax() == 5
    assert torch.corrcoef(torch.stack([learned["a"], learned["b"].flip(0)]))[0, 1] > 0.95
    with pytest.raises(ValueError, match="category 'b' has demonstrations but no policy; known: a"):
        category_rewards(Table, demonstrations, {"a": policies["a"]})
