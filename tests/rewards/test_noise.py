import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.credit.grouping import whiten
from guerdon.rewards.noise import flip_noise, flipped

quick = settings(derandomize=True, deadline=None, max_examples=30)


@quick
@given(st.lists(st.tuples(st.floats(0, 1), st.integers(-2, 2)), max_size=12), st.integers(0, 9), st.floats(0, 1))
def test_groups_flip_together_whatever_their_order(members, seed, p):
    reward = torch.tensor([m[0] for m in members], dtype=torch.float64)
    group = torch.tensor([m[1] for m in members], dtype=torch.int64)
    wrong = flipped(group, seed, p=p)
    for key in group.unique():
        assert wrong[group == key].unique().numel() == 1
    seen = flip_noise(reward, group, seed, p=p)
    torch.testing.assert_close(seen, torch.where(wrong, 1 - reward, reward))
    order = torch.randperm(len(members), generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(flip_noise(reward[order], group[order], seed, p=p), seen[order])
    torch.testing.assert_close(whiten(flip_noise(reward, group, seed, p=1.0), group), -whiten(reward, group))
    assert torch.equal(flip_noise(reward, group, seed, p=0.0), reward)


def test_the_rate_of_flips():
    group = torch.arange(4000) // 2
    for per in ("group", "sample"):
        rates = torch.stack([flipped(group, seed, p=0.3, per=per).double().mean() for seed in range(3)])
        assert (rates - 0.3).abs().max() < 0.04
        assert len(rates.unique()) == 3, "each seed has coins of its own"
    assert (flipped(group, 0, p=0.3, per="sample").view(-1, 2).sum(dim=1) == 1).any()


def test_what_does_not_apply_stays_nan_and_p_is_a_probability():
    seen = flip_noise(torch.tensor([torch.nan, 1.0]), torch.zeros(2).long(), 0, p=1.0)
    assert seen.isnan().tolist() == [True, False]
    with pytest.raises(ValueError, match="p is 1.5"):
        flip_noise(torch.ones(1), torch.zeros(1).long(), 0, p=1.5)
