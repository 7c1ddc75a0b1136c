import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t as student

from guerdon.sampling.allocation import (
    ConfidenceAllocator,
    OneStepBudget,
    confidence_gain,
    prompt_value,
    tally,
    value_refill,
)

quick = settings(derandomize=True, deadline=None, max_examples=50)


def groups(*successes, size=5):
    reward = torch.tensor([1.0 * (i < k) for k in successes for i in range(size)], dtype=torch.float64)
    return reward, torch.arange(len(successes)).repeat_interleave(size) * 3


# Refilling ------------------------------------------------------------------------------------------------


def test_values_by_hand():
    reward, group = groups(0, 1, 2, 3, 4, 5)
    assert prompt_value(reward, group)[::5].tolist() == pytest.approx([0, 0.3578, 0.3286, 0.2191, 0.0894, 0], abs=1e-4)
    assert prompt_value(2 * reward, group, max_reward=1.0)[20] == 0, "above what was said to be the maximum"


def test_values_set_the_odds():
    # One silent group, and values .358, .329, .219, .089 at 1 to 4 successes of 5.
    reward, group = groups(0, 1, 2, 3, 4)
    drawn = sum(value_refill(reward, group, seed).drawn for seed in range(1000)) / 1000
    value = torch.tensor([0.0, 0.3578, 0.3286, 0.2191, 0.0894])
    assert drawn[::5].tolist() == pytest.approx((value / value.sum()).tolist(), abs=0.05)
    alike = sum(value_refill(reward, group, seed, by_value=False).drawn for seed in range(1000)) / 1000
    assert alike[::5].tolist() == pytest.approx([0.0, 0.25, 0.25, 0.25, 0.25], abs=0.05)


def test_slots_are_filled_and_weights_bounded():
    reward, group = groups(*[0] * 8, 5, 5, 1, 2, 3, 4, 1, 2)
    out = value_refill(reward, group, 11)
    assert out.drawn[::5].sum() == 10
    assert (out.drawn[:50] == 0).all()
    assert out.weight.max() <= 2
    torch.testing.assert_close(out.weight, (1 + out.drawn).sqrt().clamp(max=2.0))
    bare = value_refill(reward, group, 11, max_weight=None)
    torch.testing.assert_close(bare.weight, 1 + out.drawn)


def test_the_attainable_maximum_sets_the_difficulty():
    reward, group = groups(0, 1, 4)
    reachable = sum(value_refill(reward, group, seed).drawn for seed in range(800))
    far = sum(value_refill(reward, group, seed, max_reward=100.0).drawn for seed in range(800))
    assert reachable[5] / 800 == pytest.approx(0.8, abs=0.05)
    assert far[5] / 800 == pytest.approx(99.8 / (99.8 + 99.2), abs=0.05)


@quick
@given(st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.integers(0, 4)), max_size=16), st.integers(0, 9))
def test_refill_of_any_batch(rows, seed):
    reward = torch.tensor([r for r, _ in rows], dtype=torch.float64)
    group = torch.tensor([g * 1000 for _, g in rows], dtype=torch.int64)
    out = value_refill(reward, group, seed)
    members = [reward[group == key] for key in group.unique()]
    silent = sum(bool((m == m[0]).all()) for m in members)
    drawn = sum(float(out.drawn[group == key][0]) for key in group.unique())
    assert drawn == (silent if silent < len(members) else 0)
    for key, m in zip(group.unique(), members, strict=True):
        assert (out.weight[group == key] == out.weight[group == key][0]).all()
        if bool((m == m[0]).all()):
            assert (out.weight[group == key] == 1).all()


# Allocation by confidence ---------------------------------------------------------------------------------


def test_tally_counts_by_key():
    known = tally(torch.tensor([1.0, 5.0, 0.0, 1.0]), torch.tensor([9, -1, 9, 9]))
    assert known.group.tolist() == [-1, 9]
    assert known.given.tolist() == [1, 3]
    assert known.mean.tolist() == pytest.approx([5, 2 / 3])
    assert known.std.tolist() == pytest.approx([0, math.sqrt(1 / 3)])


def test_gain_by_the_table():
    half = torch.full((4,), 0.5, dtype=torch.float64)
    gain = confidence_gain(half, torch.tensor([2, 4, 8, 16]))
    assert gain.tolist() == pytest.approx([3.25, 0.175, 0.034, 0.009], abs=5e-4)
    width = [student.ppf(0.95, n - 1) * 2 / math.sqrt(n) for n in (3, 4)]
    loose = confidence_gain(torch.tensor([2.0]), torch.tensor([3]), alpha=0.1)
    assert loose.item() == pytest.approx(width[0] - width[1])
    assert confidence_gain(torch.zeros(2), torch.tensor([1, 7])).tolist() == [0, 0]


def test_rollouts_go_to_what_is_least_known():
    known = tally(*groups(0, 2, 5, size=4))
    score = ConfidenceAllocator(bonus=0.5).score(known)
    tried = 0.5 * math.sqrt(math.log(13) / 4)
    spread = math.sqrt(1 / 3)
    assert score.tolist() == pytest.approx([tried, tried + spread * 0.3496, tried], abs=1e-3)
    undecided = ConfidenceAllocator(bonus=0.0)(known, 6)
    assert undecided.tolist() == [0, 6, 0]
    even = ConfidenceAllocator(bonus=100.0)(known, 6)
    assert even.tolist() == [2, 2, 2]


def test_phases_share_the_budget():
    plan = ConfidenceAllocator(initial=4, budget=8.0, phases=3)
    assert [plan.share(20, phase) for phase in range(5)] == [0, 40, 40, 0, 0]
    odd = ConfidenceAllocator(initial=2, budget=3.0, phases=4)
    assert [odd.share(5, phase) for phase in (1, 2, 3)] == [2, 2, 1]
    assert ConfidenceAllocator(initial=8, budget=4.0).share(3, 1) == 0
    assert ConfidenceAllocator(phases=1).share(3, 1) == 0


# Budget by what a rollout is worth ------------------------------------------------------------------------


def test_one_more_rollout_while_it_pays():
    budget = OneStepBudget()
    # V = .9: s^2 = .09. At n = 4 and mean 0: error .0225, bias .81 - .0225; m(4) - m(5) = .00428 > .002.
    n, prior = torch.tensor([4, 6, 7, 16]), torch.full((4,), 0.9)
    assert budget(torch.zeros(4), n, prior).tolist() == [True, True, False, False]
    assert OneStepBudget(cost=0.0)(torch.zeros(4), n, prior).tolist() == [True, True, True, False]
    assert OneStepBudget(cost=0.005)(torch.zeros(4), n, prior).tolist() == [False] * 4
    # Within one standard error of the prior nothing is to be gained, however small the cost.
    fine = OneStepBudget(cost=0.0)(torch.tensor([0.5, 0.25]), torch.tensor([4, 4]), torch.tensor([0.5, 0.5]))
    assert fine.tolist() == [False, False]


def test_by_an_independent_formula():
    mean, count, prior = torch.tensor([0.0]), torch.tensor([4]), torch.tensor([1.0])  # s^2 is at its floor, .01
    bias = 1 - 0.01 / 4
    gain = [0.01 / n * bias / (0.01 / n + bias) for n in (4, 5)]
    for cost, wanted in ((gain[0] - gain[1] - 1e-6, True), (gain[0] - gain[1] + 1e-6, False)):
        assert OneStepBudget(cost=cost)(mean, count, prior).item() is wanted
