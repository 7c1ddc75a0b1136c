import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.credit.risk import RiskPO, risk_influence

quick = settings(derandomize=True, deadline=None, max_examples=30)
ALPHA, BETA, OMEGA = 0.2, 0.8, 1.5


def quantile_mean(probability, value, low, high):
    """Mean of a discrete distribution's quantile function between two levels."""
    order = value.argsort()
    upper = probability[order].cumsum(0)
    overlap = upper.clamp(low, high) - (upper - probability[order]).clamp(low, high)
    return (overlap * value[order]).sum() / (high - low)


def mixed_risk(logits, value, risk):
    p = logits.softmax(0)
    tail = quantile_mean(p, value, 0.0, ALPHA) if risk == "averse" else quantile_mean(p, value, BETA, 1.0)
    return (OMEGA * tail + quantile_mean(p, value, ALPHA, BETA)) / (1 + OMEGA)


@pytest.mark.parametrize("risk", ["averse", "seeking"])
def test_its_policy_gradient_is_that_of_the_mixed_risk(risk):
    value = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, 5.0], dtype=torch.float64)
    logits = torch.tensor([0.3, -0.2, 0.5, 0.1, -0.4, 0.2], dtype=torch.float64)
    p = logits.softmax(0)
    low, high = (value[p.cumsum(0).ge(level).int().argmax()] for level in (ALPHA, BETA))
    influence = risk_influence(value, low, high, risk=risk)
    gradient = p * (influence - (p * influence).sum())  # sum_a p A (e_a - p)
    step = 1e-6
    for k in range(6):
        shift = torch.zeros(6, dtype=torch.float64)
        shift[k] = step
        slope = (mixed_risk(logits + shift, value, risk) - mixed_risk(logits - shift, value, risk)) / (2 * step)
        assert gradient[k].item() == pytest.approx(slope.item(), abs=1e-7)


def batch(prompts, answers, seed=0):
    generator = torch.Generator().manual_seed(seed)
    reward = torch.randint(0, 2, (prompts * answers,), generator=generator).double()
    group = torch.arange(prompts).repeat_interleave(answers)
    return reward, group, torch.ones(prompts * answers, 2).bool()


def tracked(method, low, high):
    """Give a method running quantiles that are linear between these two."""
    levels = torch.tensor(method.tracker.levels, dtype=torch.float64)
    slope = (high - low) / (method.beta - method.alpha)
    method.tracker.values = (low + slope * (levels - method.alpha)).tolist()
    return method


def test_by_hand_with_tracked_quantiles():
    # Two prompts, three answers: papers 0, 1, 2 with scores 0, 1, 2 (sample std 1); q_a = 0.5, q_b = 1.5.
    reward = torch.tensor([0.0, 0.0, 1.0, 0.0, 1.0, 1.0], dtype=torch.float64)
    group, mask = torch.tensor([4, 4, 4, 1, 1, 1]), torch.ones(6, 2).bool()
    seen, stats = tracked(RiskPO(size=2, eps=0.0), 0.5, 1.5)(reward, group, mask)
    paper = [OMEGA * -0.5 / 0.2 / 2.5, 0.5 / 0.6 / 2.5, 1.0 / 0.6 / 2.5]
    assert seen[:, 0].tolist() == pytest.approx(paper * 2)
    assert seen[:, 1].tolist() == seen[:, 0].tolist()
    assert stats == {"quantile_low": 0.5, "quantile_high": 1.5, "score": 1.0}

    gap, _ = tracked(RiskPO(size=2, eps=0.0, baseline="quantile_gap"), 0.5, 1.5)(reward, group, mask)
    assert gap[:3, 0].tolist() == pytest.approx([x - 1 / 0.6 / 2.5 for x in paper])
    assert (gap <= 1e-12).all()
    mean, _ = tracked(RiskPO(size=2, eps=0.0, baseline="batch_mean"), 0.5, 1.5)(reward, group, mask)
    assert mean[:3, 0].tolist() == pytest.approx([x - sum(paper) / 3 for x in paper])
    up, _ = tracked(RiskPO(size=2, eps=0.0, risk="seeking"), 0.5, 1.5)(reward, group, mask)
    assert up[:3, 0].tolist() == pytest.approx([0, 0.5 / 0.6 / 2.5, (1 / 0.6 + OMEGA * 0.5 / 0.2) / 2.5])


def test_quantiles_come_from_before_the_batch():
    reward, group, mask = batch(10, 8)
    method = RiskPO()
    first, _ = method(reward, group, mask)
    own, _ = RiskPO(quantiles="batch")(reward, group, mask)
    torch.testing.assert_close(first, own, msg="nothing is tracked yet")
    before = method.tracker.at(0.2), method.tracker.at(0.8)
    reward, group, mask = batch(10, 8, seed=1)
    _, stats = method(reward, group, mask)
    assert (stats["quantile_low"], stats["quantile_high"]) == pytest.approx(before)
    assert method.tracker.at(0.2) != before[0]


def test_batch_quantiles_are_each_bundles_own_and_mix_is_halfway():
    reward, group, mask = batch(4, 9)
    rows = reward.reshape(2, 2, 9).sum(dim=1)
    lows, highs = rows.quantile(0.2, dim=1), rows.quantile(0.8, dim=1)
    _, stats = RiskPO(size=2, quantiles="batch")(reward, group, mask)
    assert stats["quantile_low"] == pytest.approx(lows.mean().item())
    assert stats["quantile_high"] == pytest.approx(highs.mean().item())
    _, mixed = tracked(RiskPO(size=2, quantiles="mix"), -3.0, 9.0)(reward, group, mask)
    assert mixed["quantile_low"] == pytest.approx((lows.mean().item() - 3) / 2)
    assert mixed["quantile_high"] == pytest.approx((highs.mean().item() + 9) / 2)


def test_a_short_last_bundle_is_measured_by_itself():
    reward, group, mask = batch(3, 6)
    method = tracked(RiskPO(size=2), 50.0, 60.0)
    seen, _ = method(reward, group, mask)
    alone, _ = RiskPO(size=1)(reward[12:], group[12:], mask[12:])
    torch.testing.assert_close(seen[12:], alone)
    lonely = RiskPO(size=5)
    lonely(reward, group, mask)
    assert lonely.tracker.values is None


@pytest.mark.parametrize("noise", [0.0, 1e-5])
def test_a_bundle_of_equal_scores_is_not_blown_up(noise):
    reward = noise * torch.tensor([0.0, 1, 0, 1, 0, 1, 0, 1], dtype=torch.float64)
    group, mask = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]), torch.ones(8, 1).bool()
    seen, _ = tracked(RiskPO(size=2), 0.5, 1.5)(reward, group, mask)
    assert seen[:, 0].tolist() == pytest.approx([OMEGA * -0.5 / 0.2 / 2.5] * 8, rel=1e-3)


def test_credit_is_in_units_of_the_bundles_spread():
    reward = torch.tensor([0.0, 4.0, 0.0, 4.0], dtype=torch.float64)  # papers of 0 and 8: sample std sqrt(32)
    seen, _ = tracked(RiskPO(size=2, eps=0.0), 2.0, 6.0)(reward, torch.tensor([0, 0, 1, 1]), torch.ones(4, 1).bool())
    scale = math.sqrt(32)
    assert seen[:2, 0].tolist() == pytest.approx([OMEGA * -2 / 0.2 / 2.5 / scale, 4 / 0.6 / 2.5 / scale])


def test_how_a_paper_is_shared_out():
    # Means 0.6 and 0.9 over ten answers; the first paper holds a wrong answer (0) and a right one (1).
    first = [0.0, 1, 1, 1, 1, 1, 1, 0, 0, 0]
    second = [1.0, 1, 1, 1, 1, 1, 1, 1, 1, 0]
    reward, group = torch.tensor(first + second, dtype=torch.float64), torch.tensor([0] * 10 + [1] * 10)
    mask = torch.ones(20, 1).bool()
    even, _ = tracked(RiskPO(size=2, eps=0.0), 0.0, 2.0)(reward, group, mask)
    with pytest.warns(UserWarning, match="'sum-mean' gives a right answer negative credit"):
        method = RiskPO(size=2, share="sum-mean", eps=0.0)
    flipped, _ = tracked(method, 0.0, 2.0)(reward, group, mask)
    credit = even[0, 0].item()
    assert credit > 0
    assert flipped[[0, 10], 0].tolist() == pytest.approx([1.2 * credit, -0.2 * credit])
    std, _ = tracked(RiskPO(size=2, share="std", eps=0.0), 0.0, 2.0)(reward, group, mask)
    assert std[0, 0].item() == pytest.approx(credit / torch.tensor(first).std().item(), rel=1e-6)


def test_deviations_that_cancel_are_shared_evenly():
    reward, group = torch.tensor([0.0, 1.0, 1.0, 0.0], dtype=torch.float64), torch.tensor([0, 0, 1, 1])
    with pytest.warns(UserWarning, match="sum-mean"):
        method = RiskPO(size=2, share="sum-mean")
    seen, _ = tracked(method, 0.0, 2.0)(reward, group, torch.ones(4, 1).bool())
    even, _ = tracked(RiskPO(size=2), 0.0, 2.0)(reward, group, torch.ones(4, 1).bool())
    torch.testing.assert_close(seen, even / 2)


def test_equal_means_within_a_prompt_keep_their_scale_under_std():
    reward, group = torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=torch.float64), torch.tensor([0, 0, 1, 1])
    std, _ = tracked(RiskPO(size=2, share="std", eps=0.0), 0.0, 2.0)(reward, group, torch.ones(4, 1).bool())
    even, _ = tracked(RiskPO(size=2, eps=0.0), 0.0, 2.0)(reward, group, torch.ones(4, 1).bool())
    assert std[:2].tolist() == even[:2].tolist()
    torch.testing.assert_close(std[2:], even[2:] * math.sqrt(2))


@quick
@given(
    st.lists(st.tuples(st.integers(0, 5), st.sampled_from([0.0, 1.0, 0.3])), min_size=1, max_size=24),
    st.integers(1, 3),
    st.sampled_from(["uniform", "std"]),
    st.sampled_from(["track", "batch", "mix"]),
)
def test_ragged_groups_padding_and_names(rows, size, share, quantiles):
    group, reward = torch.tensor([g for g, _ in rows]), torch.tensor([r for _, r in rows], dtype=torch.float64)
    mask = torch.rand(len(rows), 4, generator=torch.Generator().manual_seed(len(rows))) > 0.4
    seen, stats = RiskPO(size=size, share=share, quantiles=quantiles)(reward, group, mask)
    assert seen.isfinite().all()
    assert (seen[~mask] == 0).all()
    assert all(math.isfinite(x) for x in stats.values())
    names = torch.tensor([60, -5, 7, 8, 2, 1])
    wide = torch.nn.functional.pad(mask, (0, 2))
    other, _ = RiskPO(size=size, share=share, quantiles=quantiles)(reward, names[group], wide)
    torch.testing.assert_close(other[:, :4], seen)


def test_memory_survives_json():
    reward, group, mask = batch(5, 6)
    method, other = RiskPO(), RiskPO()
    method(reward, group, mask)
    other.load_state_dict(json.loads(json.dumps(method.state_dict())))
    reward, group, mask = batch(5, 6, seed=2)
    torch.testing.assert_close(method(reward, group, mask)[0], other(reward, group, mask)[0])


def test_levels_in_the_wrong_order_are_refused():
    with pytest.raises(ValueError, match="wanted alpha < beta"):
        RiskPO(alpha=0.9, beta=0.5)
