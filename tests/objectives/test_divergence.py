import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.objectives import divergence, k1, k2, k3, kl
from guerdon.objectives.divergence import f_divergence, jensen_shannon

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


KINDS = {"forward_kl": divergence.forward_kl, "js": divergence.js, "alpha": divergence.alpha_divergence}


def jensen_shannon_divergence(logp, ref):
    middle = torch.logaddexp(logp, ref) - math.log(2)
    return (forward_kl(middle, ref) + forward_kl(middle, logp)) / 2


def of_alpha(logp, ref, alpha=0.2):
    return (1 - (alpha * ref + (1 - alpha) * logp).exp().sum()) / (alpha * (1 - alpha))


WANTED = {"forward_kl": forward_kl, "js": lambda p, r: 2 * jensen_shannon_divergence(p, r), "alpha": of_alpha}


@quick
@given(LOGITS, LOGITS)
def test_generators_give_their_divergence_in_value_and_gradient(logits, ref_logits):
    logp, ref = torch.log_softmax(logits, 0), torch.log_softmax(ref_logits, 0)
    for kind, generator in KINDS.items():

        def expected(logp, ref, generator=generator):
            return (ref.exp() * generator(logp - ref)).sum()

        torch.testing.assert_close(expected(logp, ref), WANTED[kind](logp, ref), atol=1e-8, rtol=1e-8)
        got, wanted = (gradient(f, logits, ref_logits) for f in (expected, WANTED[kind]))
        torch.testing.assert_close(got, wanted, atol=1e-8, rtol=1e-8)
        assert (generator(logp - ref) >= -1e-12).all()
        assert generator(torch.zeros(1)).item() == 0


def test_the_alpha_divergence_lies_between_the_two_kls():
    logp, ref = torch.tensor([0.7, 0.2, 0.1]).double().log(), torch.tensor([0.2, 0.3, 0.5]).double().log()
    for alpha, end in ((1 - 1e-6, forward_kl), (1e-6, reverse_kl)):
        seen = (ref.exp() * divergence.alpha_divergence(logp - ref, alpha)).sum()
        assert seen.item() == pytest.approx(end(logp, ref).item(), rel=1e-4)


@pytest.mark.parametrize("kind", list(KINDS))
@quick
@given(st.integers(0, 2**31))
def test_only_stored_actions_count_and_the_order_of_rows_does_not(kind, seed):
    torch.manual_seed(seed)
    logp, old = -torch.rand(5, 4, dtype=torch.float64) * 3, -torch.rand(5, 4, dtype=torch.float64) * 3
    mask = torch.rand(5, 4) < 0.8
    external = (torch.rand(5, 4) < 0.5) & (torch.arange(5) != 2).unsqueeze(1)
    loss, stats = f_divergence(logp, old, mask, external, kind=kind, eta=0.5)
    stored = mask & external
    each = KINDS[kind]((logp - old)[stored])
    mean = each.mean().item() if stored.any() else 0.0
    assert loss.item() == pytest.approx(0.5 * mean)
    assert stats["divergence"] == pytest.approx(mean)
    assert stats["actions"] == stored.sum()
    garbage = torch.where(stored, logp, math.nan).requires_grad_()
    for aggregate in ("token_mean", "seq_mean", "sum_over_max_length"):
        settings = {"kind": kind, "aggregate": aggregate, "max_length": 7}
        plain, _ = f_divergence(logp, old, mask, external, **settings)
        order = torch.randperm(5)
        wide = [torch.nn.functional.pad(x[order], (0, 2)) for x in (garbage, old, mask, external)]
        padded, _ = f_divergence(*wide, **settings)
        torch.testing.assert_close(padded, plain)
        padded.backward()
    assert garbage.grad.isfinite().all()
    assert (garbage.grad[~stored] == 0).all()
    beside, _ = f_divergence(logp[stored.any(1)], old[stored.any(1)], mask[stored.any(1)], external[stored.any(1)])
    torch.testing.assert_close(beside, f_divergence(logp, old, mask, external)[0])


def test_a_forgotten_action_is_called_back_and_a_likely_one_is_bounded():
    logp = torch.tensor([[-300.0, 0.0]], requires_grad=True)
    old = torch.tensor([[-1.0, -300.0]])
    everything = torch.ones(1, 2, dtype=torch.bool)
    loss, _ = f_divergence(logp, old, everything, everything, eta=1.0)
    assert loss.item() == pytest.approx((299 - 1 + math.exp(10) - 11) / 2)
    loss.backward()
    assert logp.grad.tolist() == [[-0.5, 0.0]]
    for kind in KINDS:
        assert f_divergence(logp, old, everything, everything, kind=kind)[0].isfinite()
    nothing, stats = f_divergence(logp, old, everything, ~everything)
    assert nothing.item() == stats["actions"] == 0


@quick
@given(LOGITS, LOGITS)
def test_the_definition_agrees_with_the_divergence_half_by_half(logits, ref_logits):
    logp, ref = torch.log_softmax(logits, 0), torch.log_softmax(ref_logits, 0)
    middle = torch.logaddexp(logp, ref) - math.log(2)
    n, mask = len(logp), torch.ones(5, 1, dtype=torch.bool)
    for stored, first, weight in ((True, ref, ref), (False, logp, logp)):
        total = 0.0
        for i in range(n):  # one action at a time, weighted by how likely it is to be sampled
            one = torch.full((1, 1), stored)
            loss, _ = jensen_shannon(logp[i].view(1, 1), ref[i].view(1, 1), mask[:1], 0, one, eta=1.0)
            total = total + weight[i].exp() * loss
        torch.testing.assert_close(total, forward_kl(middle, first))


def test_the_halves_add_up_and_the_own_one_can_wait():
    logp, ref = torch.tensor([[-1.0], [-2.0]]), torch.tensor([[-2.0], [-0.5]])
    mask, external = torch.ones(2, 1), torch.tensor([[True], [False]])
    both, stats = jensen_shannon(logp, ref, mask, 3, external, eta=1.0)
    assert both.item() == pytest.approx(stats["stored"] + stats["own"])
    assert min(stats.values()) > 0.05
    waiting, _ = jensen_shannon(logp, ref, mask, 3, external, eta=1.0, every=2)
    assert waiting.item() == pytest.approx(stats["stored"])
    assert jensen_shannon(logp, ref, mask, 4, external, eta=1.0, every=2)[0].item() == pytest.approx(both.item())
    alone, own = jensen_shannon(logp, ref, mask, 0)
    assert own["stored"] == 0
    assert alone.item() == pytest.approx(0.1 * own["own"])
