import math

import pytest
import torch

from guerdon.objectives.preference import dpo, log_ratio_of_answers


def test_loss_by_hand():
    chosen, rejected = torch.tensor([1.0, -1.0]).requires_grad_(), torch.tensor([0.0, 2.0])
    loss, stats = dpo(chosen, rejected, beta=0.5)
    assert loss.item() == pytest.approx((math.log1p(math.exp(-0.5)) + math.log1p(math.exp(1.5))) / 2, abs=1e-6)
    assert stats == {"accuracy": 0.5, "margin": pytest.approx(-0.5)}
    (gradient,) = torch.autograd.grad(loss, chosen)
    expected = [-0.5 / (1 + math.exp(0.5)) / 2, -0.5 / (1 + math.exp(-1.5)) / 2]
    assert gradient.tolist() == pytest.approx(expected)


def test_answers_are_summed_over_their_actions_and_the_reference_is_constant():
    logp = torch.tensor([[-1.0, -2.0], [-3.0, float("nan")]], requires_grad=True)
    ref = torch.tensor([[-2.0, -2.5], [-1.0, float("nan")]], requires_grad=True)
    gain = log_ratio_of_answers(logp, ref, torch.tensor([[1, 1], [1, 0]]))
    assert gain.tolist() == [1.5, -2.0]
    gradients = torch.autograd.grad(gain.sum(), [logp, ref], allow_unused=True)
    assert gradients[0].tolist() == [[1.0, 1.0], [1.0, 0.0]]
    assert gradients[1] is None


def test_pairs_are_wanted():
    with pytest.raises(ValueError, match=r"chosen has shape \(2,\), rejected \(3,\)"):
        dpo(torch.zeros(2), torch.zeros(3))
    with pytest.raises(ValueError, match="P > 0"):
        dpo(torch.zeros(0), torch.zeros(0))
