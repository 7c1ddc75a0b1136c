import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.credit import opo, remax

quick = settings(derandomize=True, deadline=None, max_examples=40)


def test_remax_by_hand():
    mask = torch.tensor([[True, True, False], [False, True, True]])
    out = remax(torch.tensor([1.0, 0.25]), torch.tensor([0.5, 0.5]), mask)
    assert out.tolist() == [[0.5, 0.5, 0], [0, -0.25, -0.25]]


def test_remax_of_the_greedy_trajectory_is_zero():
    reward, mask = torch.tensor([0.1, 0.7]), torch.ones(2, 3, dtype=torch.bool)
    assert (remax(reward, reward, mask) == 0).all()


def test_opo_by_hand():
    length = torch.tensor([3, 1, 2, 2, 5])
    mask = torch.arange(5) < length.unsqueeze(1)
    reward, group = torch.tensor([1.0, 0.0, 0.0, 1.0, 7.0]), torch.tensor([0, 0, 5, 5, 9])
    out = opo(reward, group, length, mask)  # baselines 3/4, 1/2, 7
    torch.testing.assert_close(out, torch.tensor([0.25, -0.75, -0.5, 0.5, 0.0]).unsqueeze(1) * mask)


@quick
@given(
    st.lists(st.tuples(st.floats(-10, 10, width=32), st.integers(1, 9)), min_size=2, max_size=12), st.integers(0, 99)
)
def test_opo_baseline_leaves_the_least_length_weighted_square(members, seed):
    reward = torch.tensor([r for r, _ in members], dtype=torch.float64)
    length = torch.tensor([n for _, n in members])
    group = torch.randint(0, 3, reward.shape, generator=torch.Generator().manual_seed(seed))
    mask = torch.arange(9) < length.unsqueeze(1)
    advantage = opo(reward, group, length, mask)[:, 0]
    for key in group.unique():
        own, weight = advantage[group == key], length[group == key]
        # The derivative of sum l (r - b)^2 in b vanishes.
        assert abs((weight * own).sum().item()) < 1e-9
        # r - A is one number per group.
        baseline = (reward - opo(reward, group, length, mask)[:, 0])[group == key]
        torch.testing.assert_close(baseline, baseline[:1].expand_as(baseline))


def test_opo_without_any_action_is_zero_with_zero_gradient():
    reward, nothing = torch.tensor([1.0, 0.0], requires_grad=True), torch.zeros(2, dtype=torch.int64)
    out = opo(reward, nothing, nothing, torch.zeros(2, 3, dtype=torch.bool))
    assert (out == 0).all()
    out.sum().backward()
    assert reward.grad.tolist() == [0, 0]
