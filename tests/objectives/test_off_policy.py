import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from guerdon.objectives import cispo, dispo, ppo_clip, reinforce
from guerdon.objectives.off_policy import rl_plus, stable_reinforce
from guerdon.objectives.policy import surrogate

RATIOS = [20.0, 0.5, 20.0, 0.5, 200.0, 1.0]
SIGNS = [1.0, 1.0, -1.0, -1.0, -1.0, 1.0]


def tokens(ratios, advantages):
    logp = torch.log(torch.tensor([ratios], dtype=torch.float64)).requires_grad_()
    advantage = torch.tensor([advantages], dtype=torch.float64)
    return logp, torch.zeros_like(logp), advantage, torch.ones(logp.shape, dtype=torch.bool)


def per_token_gradient(objective, ratios, advantages, **settings):
    """Gradient of the sum over actions, by the log-probability of each."""
    logp, old, advantage, mask = tokens(ratios, advantages)
    loss, _ = objective(logp, old, advantage, mask, **settings)
    return (torch.autograd.grad(loss, logp)[0] * len(ratios)).tolist()[0]


def test_weights_at_the_published_windows():
    expected = [-11.0, -0.8, 20.0, 0.5, 101.0, -1.0]  # -w A: a token outside its window keeps a gradient
    assert per_token_gradient(dispo, RATIOS, SIGNS) == pytest.approx(expected)


@given(
    st.lists(st.tuples(st.floats(-4, 4), st.floats(-2, 2)), min_size=1, max_size=6),
    st.tuples(*[st.floats(0, 1)] * 2, *[st.floats(0, 20)] * 2),
)
def test_gradient_is_the_clipped_weight_times_the_credit(pairs, window):
    low_pos, low_neg, high_pos, high_neg = window
    logs, advantages = zip(*pairs, strict=True)
    ratios = [float(torch.tensor(x, dtype=torch.float64).exp()) for x in logs]
    names = {"clip_low_pos": low_pos, "clip_low_neg": low_neg, "clip_high_pos": high_pos, "clip_high_neg": high_neg}
    expected = []
    for rho, a in zip(ratios, advantages, strict=True):
        low, high = (low_pos, high_pos) if a > 0 else (low_neg, high_neg)
        expected.append(-a * min(max(rho, 1 - low), 1 + high))
    assert per_token_gradient(dispo, ratios, list(advantages), **names) == pytest.approx(expected, abs=1e-9)


def test_one_window_for_both_signs_is_cispo():
    window = {"clip_low_pos": 0.3, "clip_low_neg": 0.3, "clip_high_pos": 2.0, "clip_high_neg": 2.0}
    mine = per_token_gradient(dispo, RATIOS, SIGNS, **window)
    assert mine == pytest.approx(per_token_gradient(cispo, RATIOS, SIGNS, clip_low=0.3, clip_high=2.0))


def test_on_policy_it_is_the_policy_gradient():
    logp, _, advantage, mask = tokens(RATIOS, SIGNS)
    loss, _ = dispo(logp, logp.detach(), advantage, mask)
    plain = reinforce(logp, advantage, mask)
    torch.testing.assert_close(torch.autograd.grad(loss, logp)[0], torch.autograd.grad(plain, logp)[0])


def test_masked_and_creditless_tokens_have_no_gradient():
    logp, old, advantage, mask = tokens([3.0, 1.0, 2.0], [1.0, 0.0, -1.0])
    mask[0, 2] = False
    old[0, 2] = float("nan")
    loss, _ = dispo(logp, old, advantage, mask)
    gradient = torch.autograd.grad(loss, logp)[0].tolist()[0]
    assert gradient == pytest.approx([-1.5, 0.0, 0.0])


def test_extreme_ratios_stay_finite():
    logp = torch.tensor([[300.0, -300.0, 300.0]]).requires_grad_()
    loss, stats = dispo(logp, torch.zeros(1, 3), torch.tensor([[1.0, 1.0, -1.0]]), torch.ones(1, 3).bool())
    gradient = torch.autograd.grad(loss, logp)[0]
    assert torch.isfinite(gradient).all()
    assert (3 * gradient).tolist()[0] == pytest.approx([-11.0, -0.8, 101.0])
    assert stats["clip_fraction"] == 1.0


def test_a_huge_ratio_counts_as_its_bound_and_has_no_gradient():
    logp = torch.tensor([[200.0, 5.0, -200.0, 200.0]]).requires_grad_()
    old, mask = torch.zeros(1, 4), torch.ones(1, 4).bool()
    advantage = torch.tensor([[-2.0, -2.0, -2.0, 2.0]])
    unbounded, _ = surrogate(logp, old, advantage, mask, hi_pos=1.2, lo_neg=0.8, max_log_ratio=math.inf)
    assert unbounded.item() == math.inf
    loss, stats = stable_reinforce(logp, old, advantage, mask)
    assert 4 * loss.item() == pytest.approx(2 * (1e3 + math.exp(5) + 0.8 - 1.2), rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, logp)
    assert (4 * gradient).tolist()[0] == pytest.approx([0.0, 2 * math.exp(5), 0.0, 0.0], rel=1e-5)
    assert stats["ratio"] <= 1e3


@given(st.lists(st.tuples(st.floats(-6, 6), st.floats(-2, 2)), min_size=1, max_size=6), st.floats(1.5, 1e3))
def test_within_its_bound_it_is_ppo(pairs, max_ratio):
    logs, advantages = (torch.tensor([x], dtype=torch.float64) for x in zip(*pairs, strict=True))
    logs = logs.clamp(-math.log(max_ratio), math.log(max_ratio))
    mask = torch.ones(logs.shape, dtype=torch.bool)
    mine, _ = stable_reinforce(logs, torch.zeros_like(logs), advantages, mask, max_ratio=max_ratio)
    torch.testing.assert_close(mine, ppo_clip(logs, torch.zeros_like(logs), advantages, mask)[0])


def plus(probability, old=None, *, external=True, advantage=1.0, **settings):
    """Loss and gradient of ``rl_plus`` for single actions, with divisor 1."""
    logp = torch.tensor([probability], dtype=torch.float64).log().requires_grad_()
    old_logp = logp.detach() if old is None else torch.tensor([old], dtype=torch.float64).log()
    foreign = torch.full(logp.shape, external)
    credit, mask = torch.full_like(old_logp, advantage), torch.ones(logp.shape, dtype=torch.bool)
    options = {"max_length": 1} | settings
    loss, stats = rl_plus(logp, old_logp, credit, mask, foreign, **options)
    return loss.item(), torch.autograd.grad(loss, logp)[0].tolist()[0], stats


def test_the_mixture_weight_of_a_demonstration():
    for p, weight in ((0.01, 0.0388), (1.0, 1.0), (0.3, 0.6 / 0.95)):
        loss, slope, stats = plus([p], gamma=0.0)
        assert -loss == pytest.approx(weight, abs=1e-4)
        assert -slope[0] == pytest.approx(weight, abs=1e-4)
        assert stats["external_ratio"] == pytest.approx(weight, abs=1e-4)


@given(st.floats(1e-6, 1), st.floats(0, 1), st.floats(0.1, 2))
def test_the_mixture_weight_is_bounded_where_the_plain_ratio_is_not(now, then, uniform):
    loss, _, _ = plus([now], [then], gamma=0.0, uniform=uniform)
    assert 0 < -loss <= 4 / uniform + 1e-9
    assert -loss == pytest.approx(2 * now / (1.5 * then + 0.5 * uniform))


def test_unlikely_actions_of_demonstrations_count_more():
    _, slopes, _ = plus([0.01, 0.5, 1.0], gamma=0.5)
    _, plain, _ = plus([0.01, 0.5, 1.0], gamma=0.0)
    assert slopes == pytest.approx([g * math.sqrt(1 - p) for g, p in zip(plain, (0.01, 0.5, 1.0), strict=True)])


@pytest.mark.parametrize("aggregate", ["token_mean", "seq_mean", "sum_over_max_length"])
def test_without_demonstrations_it_is_reinforce_or_ppo(aggregate):
    torch.manual_seed(0)
    logp, old, credit = (torch.randn(3, 4, dtype=torch.float64) for _ in range(3))
    mask = torch.rand(3, 4) < 0.8
    none = torch.zeros_like(mask)
    options = {"aggregate": aggregate, "max_length": 5}
    wanted, _ = surrogate(logp, old, credit, mask, **options)
    torch.testing.assert_close(rl_plus(logp, old, credit, mask, none, **options)[0], wanted)
    clipped, _ = ppo_clip(logp, old, credit, mask, clip_low=0.1, clip_high=0.3, **options)
    options |= {"clip_low": 0.1, "clip_high": 0.3}
    torch.testing.assert_close(rl_plus(logp, old, credit, mask, none, **options)[0], clipped)


def test_the_clip_is_not_for_demonstrations_and_both_parts_share_a_divisor():
    both, _, _ = plus([0.9], [0.1], gamma=0.0, clip_high=0.2)
    assert -both == pytest.approx(1.8 / 0.65)
    own, _, _ = plus([0.9], [0.1], external=False, clip_high=0.2)
    assert -own == pytest.approx(1.2)
    logp = torch.tensor([[0.9], [0.5]], dtype=torch.float64).log()
    old = torch.tensor([[0.1], [0.5]], dtype=torch.float64).log()
    external = torch.tensor([[True], [False]])
    mixed, _ = rl_plus(logp, old, torch.ones(2, 1).double(), torch.ones(2, 1), external, gamma=0.0, max_length=1)
    assert -mixed.item() == pytest.approx((1.8 / 0.65 + 1) / 2)


def test_what_lies_off_the_mask_of_a_demonstration_is_never_read():
    logp = torch.tensor([[-1.0, math.nan], [-2.0, math.nan]], requires_grad=True)
    other = torch.tensor([[-1.0, math.nan], [-1.0, math.inf]])
    mask, external = torch.tensor([[True, False]] * 2), torch.tensor([[True, True], [False, False]])
    loss, stats = rl_plus(logp, other, other, mask, external, max_length=2)
    loss.backward()
    assert loss.isfinite()
    assert logp.grad.isfinite().all()
    assert logp.grad[:, 1].tolist() == [0, 0]
    assert math.isfinite(stats["external_ratio"])
