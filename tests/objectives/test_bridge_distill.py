import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.objectives.bridge_distill import forward_kl_distill, opd

quick = settings(derandomize=True, deadline=None, max_examples=20)
NAN = float("nan")


def drawn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@quick
@given(st.integers(0, 2**16), st.integers(2, 6))
def test_the_expected_gradient_is_that_of_the_reverse_kl(seed, symbols):
    odds, teacher = drawn(seed, 2, symbols).unbind(0)
    logits = odds.clone().requires_grad_()
    log_s, log_t = logits.log_softmax(0), teacher.log_softmax(0)
    (wanted,) = torch.autograd.grad((log_s.exp() * (log_s - log_t)).sum(), logits)
    total = torch.zeros(symbols, dtype=torch.float64)
    for action, chance in enumerate(odds.softmax(0).tolist()):
        loss, _ = opd(logits.log_softmax(0)[action].view(1, 1), log_t[action].view(1, 1), torch.ones(1, 1))
        (gradient,) = torch.autograd.grad(loss, logits)
        total += chance * gradient
    torch.testing.assert_close(total, wanted)


def test_on_policy_distillation_by_hand():
    logp = torch.tensor([[-1.0, -2.0], [-0.5, NAN]], requires_grad=True)
    teacher = torch.tensor([[-0.5, -3.0], [-0.5, NAN]], requires_grad=True)
    mask = torch.tensor([[True, True], [True, False]])
    loss, stats = opd(logp, teacher, mask)
    loss.backward()
    assert loss.item() == pytest.approx((0.5 * 1 - 1 * 2 + 0) / 3)
    assert logp.grad.tolist() == [[pytest.approx(-0.5 / 3), pytest.approx(1 / 3)], [0, 0]]
    assert teacher.grad is None
    assert stats == {"reverse_kl": pytest.approx(0.5 / 3)}
    bounded, same = opd(logp.detach(), teacher, mask, most=0.25)
    assert bounded.item() == pytest.approx((0.25 * 1 - 0.25 * 2) / 3)
    assert same == stats


def test_the_warm_up_is_the_forward_kl_on_the_mask():
    logits, teacher = drawn(0, 2, 3, 4).requires_grad_(), drawn(1, 2, 3, 4)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    loss, stats = forward_kl_distill(logits, torch.where(mask.unsqueeze(-1), teacher, NAN), mask)
    (gradient,) = torch.autograd.grad(loss, logits)
    p, q = teacher.softmax(-1), logits.detach().softmax(-1)
    each = (p * (p / q).log()).sum(-1)
    assert loss.item() == pytest.approx(float((each[0, :2].mean() + each[1, 0]) / 2))
    assert stats["forward_kl"] == pytest.approx(float(each[mask].mean()))
    torch.testing.assert_close(gradient[1, 0], (q - p)[1, 0] / 2)
    assert (gradient[~mask] == 0).all()
    assert forward_kl_distill(logits, logits + 2.0, mask)[0].item() == pytest.approx(0.0, abs=1e-9)
    nothing, _ = forward_kl_distill(logits, teacher, torch.zeros_like(mask))
    assert nothing.item() == 0.0


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="one vocabulary"):
        forward_kl_distill(torch.zeros(1, 2, 3), torch.zeros(1, 2, 4), torch.ones(1, 2))
    with pytest.raises(ValueError, match="teacher_logp has shape"):
        opd(torch.zeros(1, 2), torch.zeros(1, 3), torch.ones(1, 2))
