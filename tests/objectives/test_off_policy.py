import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from guerdon.objectives import cispo, dispo, reinforce

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
