import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.objectives import k1, k2, k3, kl

quick = settings(derandomize=True, deadline=None, max_examples=40)
LOGITS = st.lists(st.floats(-3, 3), min_size=5, max_size=5).map(lambda x: torch.tensor(x, dtype=torch.float64))


def reverse_kl(logp, ref):
    return (logp.exp() * (logp - ref)).sum()


def forward_kl(logp, ref):
    return (ref.exp() * (ref - logp)).sum()


def gradient(function, logits, ref_logits):
    """Gradient in the logits of ``function(log pi, log pi_ref)``."""
    logits = logits.clone().requires_grad_()
    loss = function(torch.log_softmax(logits, 0), torch.log_softmax(ref_logits, 0))
    return torch.autograd.grad(loss, logits)[0]


def expected_under_samples(estimator):
    """Exact expectation over sampled actions: the sampling probability carries no gradient."""
    return lambda logp, ref: (logp.exp().detach() * estimator(logp, ref)).sum()


@quick
@given(LOGITS, LOGITS)
def test_expected_gradients_by_enumeration(logits, ref_logits):
    expected = {
        k1: torch.zeros(5, dtype=torch.float64),
        k2: gradient(reverse_kl, logits, ref_logits),
        k3: gradient(forward_kl, logits, ref_logits),
    }
    for estimator, wanted in expected.items():
        torch.testing.assert_close(gradient(expected_under_samples(estimator), logits, ref_logits), wanted)


@quick
@given(LOGITS, LOGITS)
def test_k1_inside_the_reward_has_the_gradient_of_reverse_kl(logits, ref_logits):
    def penalised(logp, ref):
        return (logp.exp().detach() * k1(logp, ref).detach() * logp).sum()

    wanted = gradient(reverse_kl, logits, ref_logits)
    torch.testing.assert_close(gradient(penalised, logits, ref_logits), wanted)


@quick
@given(LOGITS, LOGITS)
def test_k1_and_k3_are_unbiased_in_value_and_k3_is_never_negative(logits, ref_logits):
    logp, ref = torch.log_softmax(logits, 0), torch.log_softmax(ref_logits, 0)
    for estimator in (k1, k3):
        torch.testing.assert_close(expected_under_samples(estimator)(logp, ref), reverse_kl(logp, ref))
    assert (k3(logp, ref) >= 0).all()
    assert (k2(logp, ref) >= 0).all()


def test_k2_is_biased_in_value():
    logp, ref = torch.tensor([0.9, 0.1]).log(), torch.tensor([0.5, 0.5]).log()
    expected = 0.9 * math.log(1.8) ** 2 / 2 + 0.1 * math.log(0.2) ** 2 / 2
    assert expected_under_samples(k2)(logp, ref).item() == pytest.approx(expected)
    assert reverse_kl(logp, ref).item() == pytest.approx(0.9 * math.log(1.8) + 0.1 * math.log(0.2))
    assert abs(expected - reverse_kl(logp, ref).item()) > 0.05


def test_values_by_hand():
    logp, ref = torch.tensor(-1.0), torch.tensor(-3.0)
    assert k1(logp, ref).item() == 2
    assert k2(logp, ref).item() == 2
    assert k3(logp, ref).item() == pytest.approx(math.exp(-2) + 1)
    assert k3(torch.tensor(-900.0), torch.tensor(0.0)).item() == pytest.approx(math.exp(20) - 21)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_the_term(estimator):
    mask = torch.tensor([[True, True, False], [False, False, True]])
    garbage = float("nan")
    logp = torch.tensor([[-1.0, -2.0, garbage], [garbage, math.inf, -1.0]], requires_grad=True)
    ref = torch.tensor([[-2.0, -2.0, garbage], [-math.inf, garbage, -0.5]], requires_grad=True)
    function = {"k1": k1, "k2": k2, "k3": k3}[estimator]
    each = function(logp[mask], ref[mask]).detach()
    loss, stats = kl(logp, ref, mask, beta=0.1, estimator=estimator)
    assert loss.item() == pytest.approx(0.1 * each.mean().item())
    assert stats["kl"] == pytest.approx(each.mean().item())
    loss.backward()
    assert ref.grad is None
    assert (logp.grad[~mask] == 0).all()
    assert logp.grad.isfinite().all()
    by_trajectory, _ = kl(logp, ref, mask, beta=1.0, estimator=estimator, aggregate="seq_mean")
    assert by_trajectory.item() == pytest.approx(((each[0] + each[1]) / 2 + each[2]).item() / 2)


def test_defaults_are_those_of_grpo():
    logp, ref, mask = torch.tensor([[-1.0]]), torch.tensor([[-3.0]]), torch.ones(1, 1)
    assert kl(logp, ref, mask)[0].item() == pytest.approx(0.04 * (math.exp(-2) + 1))


def test_no_action_and_extreme_ratios_stay_finite():
    logp = torch.tensor([[-900.0, 0.0]], requires_grad=True)
    loss, _ = kl(logp, torch.tensor([[0.0, -900.0]]), torch.ones(1, 2))
    loss.backward()
    assert loss.isfinite()
    assert logp.grad.isfinite().all()
    loss, stats = kl(logp, logp, torch.zeros(1, 2))
    assert loss.item() == stats["kl"] == 0
    with pytest.raises(ValueError, match="ref_logp has shape"):
        kl(logp, logp[:, :1], torch.ones(1, 2))
