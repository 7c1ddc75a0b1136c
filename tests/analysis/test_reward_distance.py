import math

import pytest
import torch

from guerdon.analysis.reward_distance import action_values, best_policy, cliff_report, total_variation, weight_sweep


def problems(count, states=3, actions=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    reward = torch.randn(count, states, actions, generator=generator, dtype=torch.float64)
    moves = torch.rand(count, states, actions, states, generator=generator, dtype=torch.float64) ** 3
    return reward, moves / moves.sum(dim=-1, keepdim=True)


@pytest.mark.parametrize("temperature", [0.0, 0.3])
@pytest.mark.parametrize("gamma", [0.0, 0.9])
def test_values_are_those_of_value_iteration(gamma, temperature):
    reward, moves = problems(5)
    value = torch.zeros(5, 3, dtype=torch.float64)
    for _ in range(600):
        q = reward + gamma * torch.einsum("nsat,nt->nsa", moves, value)
        value = temperature * torch.logsumexp(q / temperature, dim=-1) if temperature else q.amax(dim=-1)
    torch.testing.assert_close(action_values(reward, moves, gamma=gamma, temperature=temperature), q)


def test_two_tied_arms():
    report = cliff_report(torch.tensor([[1.0, 1.0]]), temperature=0.1, norm=1e-6)
    assert report.degeneracy.tolist() == [2]
    assert report.optimal.tolist() == [[True, True]]
    assert report.gap == report.radius == 0
    assert report.greedy_tv == 1
    assert 0 < report.soft_tv <= 1e-6 / 0.1


def test_a_gap_is_certified_and_no_more():
    reward = torch.tensor([[1.0, 0.6], [0.0, 2.0]])
    report = cliff_report(reward, norm=0.19)
    assert report.gap.item() == pytest.approx(0.4)
    assert report.radius.item() == pytest.approx(0.2)
    assert report.greedy_tv == 0
    assert report.degeneracy.tolist() == [1, 1]
    assert cliff_report(reward, norm=0.21).greedy_tv == 1


def test_the_tolerance_decides_what_ties():
    reward = torch.tensor([[1.0, 0.999, 0.5]], dtype=torch.float64)
    assert cliff_report(reward).degeneracy.tolist() == [1]
    near = cliff_report(reward, tol=0.01)
    assert near.optimal.tolist() == [[True, True, False]]
    assert near.gap == 0


@pytest.mark.parametrize(("gamma", "norm"), [(0.5, 0.05), (0.9, 0.02)])
def test_both_bounds_hold_on_random_problems(gamma, norm):
    reward, moves = problems(300)
    report = cliff_report(reward, moves, gamma=gamma, temperature=0.1, norm=norm, draws=8)
    safe = report.radius > norm
    assert safe.any()
    assert (report.greedy_tv[safe] == 0).all()
    assert (report.greedy_tv[~safe] == 1).any()
    assert report.soft_bound == pytest.approx(norm / (0.2 * (1 - gamma)))
    assert (report.soft_tv <= report.soft_bound).all()


def test_many_problems_at_once_are_the_problems_one_by_one():
    reward, moves = problems(4)
    whole = cliff_report(reward, moves, gamma=0.8, norm=0.0)
    for i in range(4):
        alone = cliff_report(reward[i], moves[i], gamma=0.8, norm=0.0)
        assert whole.gap[i].item() == pytest.approx(alone.gap.item())
        assert whole.optimal[i].tolist() == alone.optimal.tolist()
    assert whole.greedy_tv.tolist() == [0.0] * 4


def test_the_soft_policy_is_the_one_of_the_closed_form():
    values = action_values(torch.tensor([[0.0, 0.1]]), temperature=0.1)
    assert best_policy(values, 0.1)[0, 1].item() == pytest.approx(1 / (1 + math.exp(-1)))
    assert total_variation(torch.tensor([[1.0, 0.0], [0.5, 0.5]]), torch.tensor([[0.0, 1.0], [0.5, 0.5]])) == 1


def test_a_sweep_jumps_once_where_the_actions_change_places():
    # w on the first reward, 1 - w on the second: 3 w against 1 - w, equal at w = 1/4
    rewards = torch.tensor([[[3.0, 0.0]], [[0.0, 1.0]]])
    w = torch.linspace(0, 1, 11)
    sweep = weight_sweep(rewards, torch.stack([w, 1 - w], dim=1), temperature=0.5)
    assert sweep.greedy_tv.tolist() == [0, 0, 1, 0, 0, 0, 0, 0, 0, 0]
    expected = torch.sigmoid((4 * w.double() - 1) / 0.5)
    torch.testing.assert_close(sweep.soft[:, 0, 0], expected)
    assert sweep.soft_tv.tolist() == pytest.approx(expected.diff().abs().tolist())
    assert sweep.gap.tolist() == pytest.approx((4 * w.double() - 1).abs().tolist(), abs=1e-6)


def test_weights_may_differ_between_states():
    rewards = torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [0.0, 1.0]]])
    weights = torch.tensor([[[1.0, 1.0], [0.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]]])  # (W=2, K=2, S=2)
    sweep = weight_sweep(rewards, weights)
    assert sweep.greedy.argmax(dim=-1).tolist() == [[0, 0], [0, 1]]


def test_a_sweep_of_decision_processes_is_that_of_their_effective_rewards():
    reward, moves = problems(2)
    other, _ = problems(2, seed=1)
    weights = torch.tensor([[1.0, 0.0], [0.5, 2.0]])
    sweep = weight_sweep(torch.stack([reward, other]), weights, moves, gamma=0.9, temperature=0.2)
    mixed = 0.5 * reward + 2 * other
    soft = best_policy(action_values(mixed, moves, gamma=0.9, temperature=0.2), 0.2)
    torch.testing.assert_close(sweep.soft[1], soft)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((torch.zeros(2, 2),), {"gamma": 0.5}, "gamma is 0.5 without transitions"),
        ((torch.zeros(2, 2), torch.ones(2, 2, 2)), {"gamma": 0.5}, "don't sum to 1"),
        ((torch.zeros(2, 2), torch.ones(3, 2, 2) / 2), {"gamma": 0.5}, r"wanted \(\.\.\., 2, 2, 2\)"),
        ((torch.zeros(2, 2), torch.ones(2, 2, 2) / 2), {"gamma": 1.0}, "gamma is 1.0, wanted"),
        ((torch.zeros(2, 1),), {}, "only one action"),
        ((torch.zeros(2, 2),), {"temperature": 0.0}, "temperature is 0.0"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        cliff_report(*arguments, **options)


def test_every_reward_of_a_sweep_needs_a_weight():
    with pytest.raises(ValueError, match="for 2 rewards"):
        weight_sweep(torch.zeros(2, 1, 2), torch.zeros(5, 3))
