import math

import pytest
import torch

from guerdon.objectives import clip_by_sign, importance_ratio, log_ratio, sigmoid_gate

MASK = torch.tensor([[True, True, False], [True, False, True]])
OLD = torch.log(torch.tensor([[0.5, 0.2, 0.9], [0.4, 0.9, 0.1]], dtype=torch.float64))
NEW = torch.log(torch.tensor([[0.6, 0.1, 0.1], [0.4, 0.1, 0.4]], dtype=torch.float64))


def test_token_and_sequence_ratio_by_hand():
    token = importance_ratio(NEW, OLD, MASK)
    assert token[MASK].tolist() == pytest.approx([1.2, 0.5, 1.0, 4.0])
    expected = [math.sqrt(1.2 * 0.5)] * 2 + [2.0] * 2
    for level in ("sequence", "sequence_token", "geometric"):
        assert importance_ratio(NEW, OLD, MASK, level)[MASK].tolist() == pytest.approx(expected)


def test_gradients_of_the_levels():
    logp = NEW.clone().requires_grad_()
    (token,) = torch.autograd.grad(importance_ratio(logp, OLD, MASK)[0, 0], logp)
    assert token.flatten().tolist() == pytest.approx([1.2, 0, 0, 0, 0, 0])
    s = math.sqrt(0.6)
    (sequence,) = torch.autograd.grad(importance_ratio(logp, OLD, MASK, "sequence")[0, 0], logp)
    assert sequence.flatten().tolist() == pytest.approx([s / 2, s / 2, 0, 0, 0, 0])
    (mixed,) = torch.autograd.grad(importance_ratio(logp, OLD, MASK, "sequence_token")[0, 0], logp)
    assert mixed.flatten().tolist() == pytest.approx([s, 0, 0, 0, 0, 0])


def test_log_ratio_is_bounded_and_off_mask_zero():
    logp = torch.tensor([[0.0, -500.0, float("nan")], [float("-inf"), 1.0, -1.0]], requires_grad=True)
    old = torch.tensor([[-100.0, 0.0, 3.0], [0.0, float("nan"), -2.0]], requires_grad=True)
    out = log_ratio(logp, old, MASK)
    assert out.tolist() == [[20, -20, 0], [-20, 0, 1]]
    out.exp().sum().backward()
    assert logp.grad.flatten().tolist() == pytest.approx([0, 0, 0, 0, 0, math.e])
    assert old.grad is None
    assert log_ratio(logp, old, MASK, bound=3.0)[0].tolist() == [3, -3, 0]


def test_clip_by_sign_bounds_each_sign_on_its_own():
    x = torch.tensor([0.1, 1.0, 9.0])
    bounds = {"lo_pos": 0.5, "hi_pos": 2.0, "lo_neg": 0.8, "hi_neg": 3.0}
    assert clip_by_sign(x, torch.ones(3), **bounds).tolist() == pytest.approx([0.5, 1, 2])
    assert clip_by_sign(x, -torch.ones(3), **bounds).tolist() == pytest.approx([0.8, 1, 3])
    assert torch.equal(clip_by_sign(x, -torch.ones(3), lo_pos=5.0, hi_pos=5.0), x)
    assert clip_by_sign(x.double(), torch.ones(3), hi_pos=1.2)[2].item() == 1.2


def test_only_what_a_bound_leaves_as_it_is_has_a_gradient():
    x = torch.tensor([0.7, 1.0, 1.3, 0.7, 1.0, 1.3], requires_grad=True)
    advantage = torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0, -1.0])
    clip_by_sign(x, advantage, hi_pos=1.2, lo_neg=0.8).sum().backward()
    assert x.grad.tolist() == [1, 1, 0, 0, 1, 1]


@pytest.mark.parametrize("tau", [1.0, 1.05, 3.0])
def test_sigmoid_gate_has_unit_slope_at_one_and_fades(tau):
    ratio = torch.tensor([0.2, 1.0, 2.0], dtype=torch.float64, requires_grad=True)
    out = sigmoid_gate(ratio, torch.ones(3), tau_pos=tau, tau_neg=7.0)
    expected = [4 / tau / (1 + math.exp(-tau * (r - 1))) for r in (0.2, 1.0, 2.0)]
    assert out.tolist() == pytest.approx(expected, abs=1e-12)
    out.sum().backward()
    assert ratio.grad[1].item() == pytest.approx(1.0, abs=1e-12)
    assert 0 < ratio.grad[0] < 1
    assert 0 < ratio.grad[2] < 1
    assert torch.equal(sigmoid_gate(ratio, -torch.ones(3), tau_pos=7.0, tau_neg=tau), out)
