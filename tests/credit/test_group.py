import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.credit import dr_grpo, gpg, grpo, opo, reinforce_pp, reinforce_pp_baseline, rloo
from guerdon.registry import methods

quick = settings(derandomize=True, deadline=None, max_examples=40)
REWARDS = st.lists(st.sampled_from([0.0, 0.1, 0.25, 1.0, -2.0]), min_size=1, max_size=16)

CREDITS = {
    "grpo": grpo,
    "dr_grpo": dr_grpo,
    "rloo": rloo,
    "reinforce++": lambda r, _, m: reinforce_pp(r, m),
    "reinforce++_baseline": reinforce_pp_baseline,
    "gpg": gpg,
    "opo": lambda r, g, m: opo(r, g, m.sum(dim=1), m),
}
COMPARING = [name for name in CREDITS if name != "reinforce++"]


def ragged_batch(rewards, seed):
    random = torch.Generator().manual_seed(seed)
    reward = torch.tensor(rewards, dtype=torch.float64)
    group = torch.randint(0, 4, reward.shape, generator=random) * 1000 - 7
    mask = torch.rand(len(rewards), 6, generator=random) > 0.4
    return reward, group, mask


def lengths_mask(*lengths):
    return torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)


def assert_rows(advantage, mask, expected):
    wanted = torch.tensor(expected, dtype=advantage.dtype).unsqueeze(1) * mask
    torch.testing.assert_close(advantage, wanted, atol=1e-5, rtol=1e-5)


def test_grpo_by_hand():
    mask = lengths_mask(2, 1, 3, 1, 1)
    reward, group = torch.tensor([0.0, 2.0, 1.0, 5.0, 3.0]), torch.tensor([3, 3, 3, 9, 9])
    half = math.sqrt(2)
    assert_rows(grpo(reward, group, mask, eps=0.0), mask, [-1, 1, 0, 1 / half, -1 / half])
    assert_rows(grpo(reward, group, mask, eps=1.0), mask, [-0.5, 0.5, 0, 1 / (half + 1), -1 / (half + 1)])
    population = math.sqrt(2 / 3)
    assert_rows(grpo(reward, group, mask, eps=0.0, ddof=0), mask, [-1 / population, 1 / population, 0, 1, -1])


def test_a_group_of_one_gets_nothing_unless_asked():
    reward, group, mask = torch.tensor([2.0, 0.0, 1.0]), torch.tensor([0, 1, 1]), lengths_mask(1, 1, 1)
    for credit in (grpo, dr_grpo, reinforce_pp_baseline):
        assert credit(reward, group, mask)[0, 0] == 0, "trainers disagree; our default is no credit"
    assert rloo(reward, group, mask)[0, 0] == 0
    assert gpg(reward, group, mask)[0, 0] == 0
    assert grpo(reward, group, mask, singleton="raw")[0, 0] == 2
    assert dr_grpo(reward, group, mask, singleton="raw")[0, 0] == 2
    # raw: the batch holds 2, -1/2, 1/2 with mean 2/3 and population variance 7/6 + 1/3 - 4/9 = 19/18
    raw = reinforce_pp_baseline(reward, group, mask, singleton="raw")
    assert raw[0, 0].item() == pytest.approx((2 - 2 / 3) / math.sqrt(19 / 18), rel=1e-5)


def test_dr_grpo_and_rloo_by_hand():
    mask = lengths_mask(3, 2, 1)
    reward, group = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([4, 4, 4])
    assert_rows(dr_grpo(reward, group, mask), mask, [2 / 3, -1 / 3, -1 / 3])
    assert_rows(rloo(reward, group, mask), mask, [1, -0.5, -0.5])


def test_reinforce_pp_unit():
    reward, mask = torch.tensor([1.0, 0.0]), lengths_mask(3, 1)
    # Per token: values 1, 1, 1, 0 with mean 3/4 and population variance 3/16.
    assert_rows(reinforce_pp(reward, mask), mask, [1 / math.sqrt(3), -math.sqrt(3)])
    assert_rows(reinforce_pp(reward, mask, ddof=1), mask, [0.5, -1.5])
    assert_rows(reinforce_pp(reward, mask, unit="trajectory"), mask, [1, -1])


def test_trajectories_without_an_action_do_not_enter_the_batch_statistics():
    mask = torch.tensor([[True, True], [True, False], [False, False]])
    reward = torch.tensor([1.0, 0.0, 50.0])
    for unit in ("token", "trajectory"):
        out = reinforce_pp(reward, mask, unit=unit)
        assert torch.equal(out[:2], reinforce_pp(reward[:2], mask[:2], unit=unit))


def test_reinforce_pp_baseline_by_hand():
    mask = lengths_mask(3, 1, 2, 2)
    reward, group = torch.tensor([1.0, 0.0, 1.0, 1.0]), torch.tensor([0, 0, 1, 1])
    # Tokens: 0.5 three times, -0.5 once, 0 four times: mean 1/8, variance 1/8 - 1/64 = 7/64.
    out = reinforce_pp_baseline(reward, group, mask)
    root = math.sqrt(7) / 8
    assert_rows(out, mask, [(0.5 - 0.125) / root, (-0.5 - 0.125) / root, 0, 0])
    assert (out[2:] == 0).all(), "equal rewards carry no signal, whatever the batch mean"
    # Trajectories: 0.5, -0.5, 0, 0: mean 0, variance 1/8.
    assert_rows(
        reinforce_pp_baseline(reward, group, mask, unit="trajectory"), mask, [math.sqrt(2), -math.sqrt(2), 0, 0]
    )


def test_gpg_makes_up_for_silent_groups():
    mask = lengths_mask(1, 2, 1, 1, 1, 1)
    reward = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 0.0])
    group = torch.tensor([0, 0, 1, 1, 2, 2])
    assert_rows(gpg(reward, group, mask), mask, [1.5, -1.5, 0, 0, 0, 0])  # alpha = 6 / (6 - 4)
    root = math.sqrt(0.5)
    assert_rows(gpg(reward, group, mask, f_norm="std", eps=0.0), mask, [1.5 / root, -1.5 / root, 0, 0, 0, 0])
    assert (gpg(torch.ones(6), group, mask) == 0).all()


@pytest.mark.parametrize("name", CREDITS)
@quick
@given(rewards=REWARDS, seed=st.integers(0, 10**6))
def test_invariants(name, rewards, seed):
    credit = CREDITS[name]
    reward, group, mask = ragged_batch(rewards, seed)
    out = credit(reward, group, mask)
    assert out.isfinite().all()
    assert (out[~mask] == 0).all()
    order = torch.randperm(len(rewards), generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(credit(reward[order], group[order], mask[order]), out[order])
    padded = torch.cat([mask, torch.zeros(len(rewards), 3, dtype=torch.bool)], dim=1)
    torch.testing.assert_close(credit(reward, group, padded)[:, :6], out)
    torch.testing.assert_close(credit(reward + 3.0, group, mask), out, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", COMPARING)
@quick
@given(rewards=REWARDS, seed=st.integers(0, 10**6))
def test_equal_rewards_of_a_group_give_exactly_zero(name, rewards, seed):
    reward, group, mask = ragged_batch(rewards, seed)
    equal = group == group[0]
    reward = torch.where(equal, reward[0], reward).float()
    assert (CREDITS[name](reward, group, mask)[equal] == 0).all()


@quick
@given(rewards=REWARDS, seed=st.integers(0, 10**6), factor=st.sampled_from([0.01, 7.0, 1000.0]))
def test_scale_of_the_reward(rewards, seed, factor):
    reward, group, mask = ragged_batch(rewards, seed)
    for name in ("dr_grpo", "rloo", "gpg", "opo"):
        torch.testing.assert_close(
            CREDITS[name](factor * reward, group, mask), factor * CREDITS[name](reward, group, mask)
        )
    scale_free = (
        lambda r: grpo(r, group, mask, eps=0.0),
        lambda r: reinforce_pp(r, mask, eps=0.0),
        lambda r: reinforce_pp_baseline(r, group, mask, eps=0.0),
        lambda r: gpg(r, group, mask, f_norm="std", eps=0.0),
    )
    for credit in scale_free:
        torch.testing.assert_close(credit(factor * reward), credit(reward))


@pytest.mark.parametrize("name", CREDITS)
def test_gradient_with_respect_to_the_reward_is_finite(name):
    group = torch.tensor([0, 0, 0, 1, 1, 1, 2])  # one useful group, one of equal rewards, one of a single member
    reward = torch.tensor([0.0, 1.0, 0.25, 0.3, 0.3, 0.3, -2.0], requires_grad=True)
    mask = lengths_mask(1, 2, 3, 3, 2, 1, 2)
    (gradient,) = torch.autograd.grad((CREDITS[name](reward, group, mask) ** 2).sum(), reward)
    assert gradient.isfinite().all()
    assert (gradient != 0).any()


def test_methods_that_compare_a_group_say_so():
    needs = {method.name: method.needs_group for method in methods("credit")}
    assert all(needs[name] == (name != "reinforce++") for name in CREDITS)
