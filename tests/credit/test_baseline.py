import itertools
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.credit import opo, remax
from guerdon.credit.baseline import ShrinkageBaseline, shrinkage_weight
from guerdon.errors import RecipeError
from guerdon.registry import get

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


# Shrinkage ------------------------------------------------------------------------------------------------


def credit_of(rewards, baseline=None, groups=None, tasks=None, **fields):
    """Credit (N,) of trajectories of one action."""
    reward = torch.tensor(rewards, dtype=torch.float64)
    group = torch.zeros(len(rewards)).long() if groups is None else torch.tensor(groups)
    task = group if tasks is None else torch.tensor(tasks)
    out, stats = (baseline or ShrinkageBaseline())(reward, group, torch.ones(len(rewards), 1).bool(), task, **fields)
    return out.squeeze(1), stats


def test_weights_by_hand():
    def weight(mean, prior, count, variance):
        return shrinkage_weight(*(torch.tensor(float(x)) for x in (mean, prior, count, variance))).item()

    assert weight(0.5, 0.5, 4, 0.25) == 1
    assert weight(0.25, 0.5, 4, 0.25) == 1, "one standard error away"
    assert weight(0.0, 0.5, 4, 0.25) == pytest.approx(0.0625 / 0.25)
    assert weight(0.0, 0.9, 4, 0.09) == pytest.approx(0.0225 / 0.81)
    assert weight(0.0, 1.0, 0, 0.01) == 1


def squared_error(p, prior, n=4):
    """Exact squared errors of the mean, the mix and the prior as estimates of p."""
    counts = torch.arange(n + 1, dtype=torch.float64)
    chance = torch.tensor([math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)], dtype=torch.float64)
    mean, expected = counts / n, torch.full_like(counts, prior)
    variance = torch.full_like(counts, max(prior * (1 - prior), 0.01))
    weight = shrinkage_weight(mean, expected, torch.full_like(counts, n), variance)
    return [float((chance * (b - p) ** 2).sum()) for b in (mean, weight * prior + (1 - weight) * mean, expected)]


@pytest.mark.parametrize(
    ("p", "prior", "wanted"),
    [(0.5, 0.5, 0.0176), (0.5, 0.4, 0.025), (0.2, 0.3, 0.0111), (0.1, 0.9, 0.0263)],
)
def test_the_mix_has_a_small_squared_error(p, prior, wanted):
    mean, mix, _ = squared_error(p, prior)
    assert mean == pytest.approx(p * (1 - p) / 4)
    assert mix == pytest.approx(wanted, abs=5e-4)


def test_credit_by_hand():
    # Prior .5, mean .25: one standard error, so the prior is the baseline.
    seen, stats = credit_of([1, 0, 0, 0])
    assert seen.tolist() == pytest.approx([0.5, -0.5, -0.5, -0.5])
    assert stats == pytest.approx({"prior_weight": 1.0, "prior_gap": 0.25})
    # Mean 0, prior .9: w = 1/36.
    seen, _ = credit_of([0, 0, 0, 0], ShrinkageBaseline(prior=0.9))
    assert seen.tolist() == pytest.approx([-0.9 / 36] * 4)
    seen, _ = credit_of([0, 0, 0, 0], ShrinkageBaseline(prior=0.9, variance="sample"))
    assert seen.tolist() == pytest.approx([-0.9 * 0.0025 / 0.81] * 4)


def test_without_oneself():
    # Of 1, 0, 0, 0 the first sees the mean 0 of three: w = (.25/3) / .25 = 1/3; the others 1/3, within the error.
    seen, _ = credit_of([1, 0, 0, 0], ShrinkageBaseline(leave_one_out=True))
    assert seen.tolist() == pytest.approx([1 - 0.5 / 3, -0.5, -0.5, -0.5])
    alone, _ = credit_of([1], ShrinkageBaseline(leave_one_out=True, prior=0.3))
    assert alone.tolist() == pytest.approx([0.7])


def expected_gradient(leave_one_out, p=0.3, n=4):
    """E[mean_i A_i score_i] of n draws with success p, exactly; the score of a success is 1 - p, of a failure -p."""
    total = 0.0
    for rewards in itertools.product((0.0, 1.0), repeat=n):
        baseline = ShrinkageBaseline(prior=0.8, rate=0.0, leave_one_out=leave_one_out)
        chance = math.prod(p if r else 1 - p for r in rewards)
        seen, _ = credit_of(rewards, baseline)
        total += chance * sum(a * (r - p) for a, r in zip(seen.tolist(), rewards, strict=True)) / n
    return total


def test_without_oneself_the_gradient_is_unbiased():
    assert expected_gradient(True) == pytest.approx(0.3 * 0.7)
    assert abs(expected_gradient(False) - 0.3 * 0.7) > 0.01


def test_a_problem_is_remembered():
    baseline = ShrinkageBaseline(rate=0.5)
    credit_of([1, 1, 0, 0], baseline, groups=[4, 4, 7, 7], tasks=[70, 70, 3, 3])
    assert baseline.known.estimates == {3: 0.25, 70: 0.75}
    copy = ShrinkageBaseline(rate=0.5)
    copy.load_state_dict(json.loads(json.dumps(baseline.state_dict())))
    assert copy.known.estimates == baseline.known.estimates
    seen, _ = credit_of(
        [1, 0],
        copy,
        groups=[1, 2],
        tasks=[70, 3],
    )
    assert seen.tolist() == pytest.approx([1 - 0.75 * 1 - 0.0, 0 - 0.25])
    still = ShrinkageBaseline(prior=0.2, rate=0.0)
    credit_of([1, 1], still)
    assert still.known.estimates == {0: 0.2}


def test_the_task_may_know():
    baseline = ShrinkageBaseline(key="rate")
    known = [{"rate": 0.25}, {"rate": 0.25}, {"rate": 1.0}, {"rate": 1.0}]
    seen, _ = credit_of([0, 0, 1, 1], baseline, groups=[0, 0, 1, 1], metadata=known)
    w = (0.25 * 0.75 / 2) / max(0.25 * 0.75 / 2, 0.0625)
    assert seen.tolist() == pytest.approx([-0.25 * w] * 2 + [0, 0])
    with pytest.raises(RecipeError, match="have no 'other', wanted as its prior; known: rate"):
        credit_of([0, 0], ShrinkageBaseline(key="other"), metadata=known[:2])


def test_a_predictor_is_asked_and_told():
    baseline = get("credit", "shrinkage_baseline").bind({"predictor": "guerdon.reward_models.value:InContextValue"})
    fields = {
        "reward": torch.tensor([1.0, 1.0, 0.0, 0.0]),
        "group": torch.tensor([0, 0, 1, 1]),
        "mask": torch.ones(4, 1).bool(),
        "task_id": torch.tensor([5, 5, 2, 2]),
        "prompt": ["add 1 and 2"] * 2 + ["spell tiger"] * 2,
    }
    first = baseline(fields).stats["prior_gap"]
    assert first == pytest.approx(0.5)
    assert baseline.call.known.predictor.support == {"spell tiger": 0.0, "add 1 and 2": 1.0}
    saved = json.loads(json.dumps(baseline.state_dict()))
    assert baseline(fields).stats["prior_gap"] < first - 0.2
    other = baseline.method.bind({"predictor": "guerdon.reward_models.value:InContextValue"})
    other.load_state_dict(saved)
    assert other(fields).stats["prior_gap"] == pytest.approx(0.25, abs=0.02)
    with pytest.raises(RecipeError, match="a predictor of rewards reads prompts"):
        baseline({name: x for name, x in fields.items() if name != "prompt"})


@quick
@given(
    st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.integers(0, 3)), min_size=1, max_size=12),
    st.booleans(),
    st.sampled_from(["prior", "sample"]),
    st.integers(0, 99),
)
def test_shrinkage_of_any_batch(rows, leave_one_out, variance, seed):
    reward = torch.tensor([r for r, _ in rows], dtype=torch.float64)
    group = torch.tensor([g for _, g in rows])
    random = torch.Generator().manual_seed(seed)
    mask = torch.rand(len(rows), 3, generator=random) > 0.3
    options = {"leave_one_out": leave_one_out, "variance": variance, "prior": 0.7}
    out, _ = ShrinkageBaseline(**options)(reward, group, mask, group)
    assert (out[~mask] == 0).all()
    order = torch.randperm(len(rows), generator=random)
    other, _ = ShrinkageBaseline(**options)(reward[order], group[order], mask[order], group[order])
    torch.testing.assert_close(out[order], other)
    everywhere, _ = ShrinkageBaseline(**options)(reward, group, torch.ones_like(mask), group)
    assert ((everywhere - reward.unsqueeze(1)).abs() <= 1).all(), "the baseline lies between prior and mean"
    scaled, _ = ShrinkageBaseline(**options, scale=True)(reward, group, torch.ones_like(mask), group)
    spread = everywhere[:, 0].std() if len(rows) > 1 else torch.zeros(())
    torch.testing.assert_close(scaled * (spread + 1e-8), everywhere)
