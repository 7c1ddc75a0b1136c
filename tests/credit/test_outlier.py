import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.credit.outlier import sigma_filter, stable_reinforce
from guerdon.registry import get

quick = settings(derandomize=True, deadline=None, max_examples=40)


def credit(rewards, mask=None, **options):
    reward = torch.tensor(rewards, dtype=torch.float64)
    mask = torch.ones(len(rewards), 1).bool() if mask is None else mask
    advantage, stats = stable_reinforce(reward, mask, **options)
    return advantage, stats["outliers"]


def test_the_single_wrong_answer_of_a_batch():
    rewards = [1.0] * 255 + [0.0]
    advantage, share = credit(rewards)
    z = torch.tensor(rewards, dtype=torch.float64)
    z = (z - z.mean()) / z.std()
    assert z[-1].item() == pytest.approx(-15.9, abs=0.1)
    assert advantage[-1].item() == 0.0
    torch.testing.assert_close(advantage[:-1, 0], z[:-1], atol=1e-6, rtol=0)
    assert share == pytest.approx(1 / 256)
    assert credit(rewards, outside="clip")[0][-1].item() == -3.0
    assert credit(rewards, sigmas=20.0)[0][-1].item() == pytest.approx(z[-1].item())


def test_ten_numbers_have_no_outlier_and_eleven_can():
    # With the sample standard deviation one number among n lies (n - 1) / sqrt(n) out: 2.85 for 10, 3.02 for 11.
    assert credit([1e6] + [0.0] * 9)[1] == 0.0
    assert credit([1e6] + [0.0] * 10)[1] == pytest.approx(1 / 11)


def test_what_is_not_finite_or_never_acted_enters_nothing():
    mask = torch.tensor([[True]] * 4 + [[False]])
    advantage, share = credit([1.0, 0.0, math.nan, math.inf, 1e9], mask)
    assert advantage.squeeze(1).tolist() == pytest.approx([math.sqrt(0.5), -math.sqrt(0.5), 0, 0, 0], abs=1e-6)
    assert share == 0.5
    assert credit([1.0, 0.0, math.inf], outside="clip")[0][-1].item() == 0.0


@quick
@given(
    st.lists(st.sampled_from([0.0, 1.0, 50.0, -3.0]), min_size=1, max_size=30),
    st.randoms(use_true_random=False),
    st.sampled_from(["zero", "clip"]),
)
def test_bounded_whatever_the_order_shift_or_padding(rewards, random, outside):
    seen, share = credit(rewards, outside=outside)
    assert seen.abs().max() <= 3
    assert 0 <= share <= 1
    order = random.sample(range(len(rewards)), len(rewards))
    shuffled, _ = credit([rewards[i] for i in order], outside=outside)
    torch.testing.assert_close(shuffled, seen[order])
    torch.testing.assert_close(credit([2 * r + 7 for r in rewards], outside=outside)[0], seen, atol=1e-5, rtol=0)
    wide, _ = credit(rewards, torch.arange(3).expand(len(rewards), 3) < 1, outside=outside)
    torch.testing.assert_close(wide[:, :1], seen)
    assert (wide[:, 1:] == 0).all()


def test_equal_rewards_teach_nothing_and_group_size_one_is_allowed():
    assert credit([0.7] * 12)[0].tolist() == [[0.0]] * 12
    assert not get("credit", "stable_reinforce").needs_group


def test_filtering_anothers_credit():
    raw = torch.tensor([[1.0, 2.0], [3.0, 9.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True], [True, False]])
    seen, stats = sigma_filter(raw, mask)
    assert seen.tolist() == [pytest.approx([-1.0, 0.0]), pytest.approx([1.0, 0.0])]
    assert stats == {"outliers": 0.0}
    kept, stats = sigma_filter(raw, mask, standardise=False, sigmas=2.5)
    assert kept.tolist() == [[1.0, 2.0], [0.0, 0.0]]
    assert stats == {"outliers": pytest.approx(1 / 3)}
    clipped, _ = sigma_filter(raw, mask, standardise=False, sigmas=2.5, outside="clip")
    assert clipped.tolist() == [[1.0, 2.0], [2.5, 0.0]]


@quick
@given(st.lists(st.sampled_from([0.0, 1.0, 50.0]), min_size=1, max_size=30), st.sampled_from(["zero", "clip"]))
def test_whitening_then_filtering_is_stable_reinforce(rewards, outside):
    reward, mask = torch.tensor(rewards, dtype=torch.float64), torch.ones(len(rewards), 1).bool()
    whole, stats = stable_reinforce(reward, mask, outside=outside)
    steps, other = sigma_filter(reward.unsqueeze(1), mask, outside=outside)
    torch.testing.assert_close(steps, whole)
    assert other == stats


def test_credit_that_is_not_finite_is_dropped_and_counted():
    raw = torch.tensor([[1.0, math.nan], [-1.0, math.inf], [math.nan, 0.0]])
    mask = torch.tensor([[True, True], [True, True], [False, True]])
    seen, stats = sigma_filter(raw, mask)
    assert seen.tolist() == [pytest.approx([1.0, 0.0]), pytest.approx([-1.0, 0.0]), [0.0, 0.0]]
    assert stats == {"outliers": pytest.approx(2 / 5)}
