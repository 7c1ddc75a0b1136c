import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from guerdon.policies.control import ControlPolicy, ControlSampling
from guerdon.policies.critic import SoftMinCritic, follow, slow_critics, soft_min
from guerdon.tasks.base import Starts
from guerdon.tasks.gymnasium import Gymnasium

quick = settings(derandomize=True, deadline=None, max_examples=60)
VALUE = st.floats(-20, 20)


@quick
@given(VALUE, VALUE, st.floats(0.05, 5))
def test_it_lies_between_the_minimum_and_the_mean(x, y, temperature):
    low, high = torch.tensor(x, dtype=torch.float64), torch.tensor(y, dtype=torch.float64)
    seen = soft_min(low, high, temperature).item()
    assert min(x, y) - 1e-9 <= seen <= (x + y) / 2 + 1e-9
    assert seen == soft_min(high, low, temperature).item()


def test_values_by_hand_and_limits():
    x, y = torch.tensor(1.0, dtype=torch.float64), torch.tensor(2.0, dtype=torch.float64)
    assert soft_min(x, x).item() == pytest.approx(1.0)
    assert soft_min(x, y).item() == pytest.approx(-0.3 * math.log((math.exp(-1 / 0.3) + math.exp(-2 / 0.3)) / 2))
    assert soft_min(x, y, 1e-3).item() == pytest.approx(1.0, abs=1e-3)
    assert soft_min(x, y, 1e4).item() == pytest.approx(1.5, abs=1e-3)


def test_the_lower_head_gets_the_gradient():
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    soft_min(x[0], x[1]).backward()
    assert x.grad.sum().item() == pytest.approx(1.0)
    assert x.grad[0] / x.grad[1] == pytest.approx(math.exp(1 / 0.3), rel=1e-4)


def critic():
    torch.manual_seed(0)
    return SoftMinCritic(8, polyak=0.25)


def test_layers_are_those_of_the_source():
    made = critic()
    x = torch.randn(3, 5, 8)
    seen = made(10 * x + 3)
    assert seen.shape == (3, 5, 1)
    normal = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5 / 100).sqrt()
    heads = [made.heads.first, made.heads.second]
    assert all(head[0].weight.shape == (2, 8) for head in heads)
    first, second = (head[2](torch.nn.functional.gelu(head[0](normal))) for head in heads)
    torch.testing.assert_close(seen, soft_min(first, second))


def test_the_slow_copy_follows():
    made = critic()
    x = torch.randn(4, 8)
    before = made(x)
    with torch.no_grad():
        for p in made.parameters():
            p.add_(1.0)
    moved = made(x)
    with slow_critics(nn.ModuleList([made])):
        torch.testing.assert_close(made(x), before)
    assert not torch.allclose(moved, before)
    old = {name: b.clone() for name, b in made.named_buffers()}
    follow(nn.ModuleDict({"value": made}))
    for name, _ in made.heads.named_parameters():
        slow = f"slow_{name.replace('.', '_')}"
        torch.testing.assert_close(made.get_buffer(slow), old[slow] + 0.25)
        assert not made.get_buffer(slow).requires_grad
    torch.testing.assert_close(made(x), moved)
    for _ in range(60):
        made.follow()
    with slow_critics(made):
        torch.testing.assert_close(made(x), moved)


def test_a_control_policy_values_its_samples_with_the_slow_copy():
    task = Gymnasium(env="CartPole-v1")
    torch.manual_seed(0)
    policy = ControlPolicy(task, hidden=(8,), critic="soft_min")
    assert isinstance(policy.network.critic, SoftMinCritic)
    with torch.no_grad():
        policy.network.critic.heads.first[2].bias.add_(1.0)
        policy.network.critic.heads.second[2].bias.add_(1.0)
    starts = Starts.repeat(task.train_batch(2, 0), 1)
    rollouts = policy.sample(starts, ControlSampling(), seed=0)
    now = policy.evaluate(rollouts).value_prediction
    torch.testing.assert_close(now[rollouts.mask], rollouts.values[rollouts.mask] + 1.0)
    with slow_critics(policy.module):
        torch.testing.assert_close(policy.evaluate(rollouts).value_prediction, rollouts.values)
