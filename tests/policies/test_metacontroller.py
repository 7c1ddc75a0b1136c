import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.policies.metacontroller import (
    CodePolicy,
    Metacontroller,
    discovery_loss,
    gated_codes,
    gaussian_logp,
    harden,
    standard_normal_kl,
)

quick = settings(derandomize=True, deadline=None, max_examples=25)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("beta", "wanted"), [(0.0, [0, 0, 0]), (1.0, [0, 1, 2])])
def test_a_closed_gate_keeps_the_first_code_and_an_open_one_takes_every_proposal(beta, wanted):
    proposal = noise(2, 3, 4)
    codes, gates = gated_codes(proposal, lambda t, z: torch.full((2,), beta))
    assert torch.equal(codes, proposal[:, wanted])
    assert gates[:, 0].tolist() == [1.0, 1.0]


@quick
@given(st.integers(0, 10**6))
def test_codes_are_mixed_step_by_step(seed):
    proposal, beta = noise(3, 5, 2, seed=seed).double(), torch.rand(3, 5, dtype=torch.float64)
    seen = []

    def gate(t, z):
        seen.append(z)
        return beta[:, t]

    codes, _ = gated_codes(proposal, gate)
    z = proposal[:, 0]
    for t in range(1, 5):
        assert torch.equal(seen[t - 1], z)  # the switch sees the code in force, not the proposal
        z = beta[:, t, None] * proposal[:, t] + (1 - beta[:, t, None]) * z
        assert torch.allclose(codes[:, t], z)


def test_thresholds_are_straight_through():
    logit = torch.tensor([-2.0, 0.1, 3.0], requires_grad=True)
    hard = harden(logit.sigmoid())
    assert hard.tolist() == pytest.approx([0.0, 1.0, 1.0])
    hard.sum().backward()
    soft = logit.detach().sigmoid()
    assert torch.allclose(logit.grad, soft * (1 - soft))


def test_the_code_zero_changes_nothing_and_control_is_of_low_rank():
    model = Metacontroller(6, code=3, rank=2, hidden=8)
    residual, code = noise(4, 6), noise(1, 3, seed=1)
    assert torch.equal(model.control(residual, torch.zeros(4, 3)), residual)
    change = model.control(torch.eye(6), code.expand(6, -1)) - torch.eye(6)
    assert torch.linalg.matrix_rank(change, rtol=1e-4) == 2
    left, right = (layer(code).view(6, 2) for layer in (model.left, model.right))
    assert torch.allclose(change.T, left @ right.T / math.sqrt(2), atol=1e-6)


@quick
@given(st.integers(0, 10**6))
def test_kl_against_torch(seed):
    mean, log_std = noise(3, 4, seed=seed), 0.3 * noise(3, 4, seed=seed + 1)
    normal = torch.distributions.Normal
    wanted = torch.distributions.kl_divergence(normal(mean, log_std.exp()), normal(0.0, 1.0)).sum(dim=-1)
    assert torch.allclose(standard_normal_kl(mean, log_std), wanted, atol=1e-5)
    assert torch.allclose(
        gaussian_logp(mean + 1, mean, log_std), normal(0.0, log_std.exp()).log_prob(torch.ones(3, 4)).sum(-1)
    )


def test_loss_by_hand():
    nll, kl = torch.tensor([[1.0, 2.0, float("nan")]]), torch.tensor([[3.0, 5.0, float("nan")]])
    mask, gates = torch.tensor([[True, True, False]]), torch.tensor([[1.0, 0.2, 0.5]])
    assert discovery_loss(nll, kl, mask, alpha=0.1).item() == pytest.approx((1 + 2 + 0.3 + 0.5) / 2)
    weighted = discovery_loss(nll, kl, mask, alpha=0.1, gates=gates, gate_weighted_kl=True)
    assert weighted.item() == pytest.approx((1 + 2 + 0.1 * (3 + 1 + 1 + 0.2)) / 2)
    with pytest.raises(ValueError, match="gates are missing"):
        discovery_loss(nll, kl, mask, gate_weighted_kl=True)


def test_discovery_agrees_with_single_steps():
    model = Metacontroller(6, code=3, rank=2, hidden=8, seed=2)
    residual = noise(4, 5, 6)
    found = model.discover(residual, noise(4, 5, 3, seed=3))
    memory = None
    for t in range(5):
        if t:
            assert memory is not None
            gate = model.fires(residual[:, t], memory, found.codes[:, t - 1])
            assert torch.allclose(gate, found.gates[:, t], atol=1e-6)
        memory = model.remember(residual[:, t], memory)
    assert torch.allclose(found.controlled, model.control(residual, found.codes))
    assert (found.kl >= 0).all()
    hard = model.discover(residual, hard=True)
    assert set(hard.gates.unique().tolist()) <= {0.0, 1.0}


def test_the_encoder_knows_the_future_and_the_code_policy_does_not():
    residual = noise(2, 6, 5)
    other = residual.clone()
    other[:, 4:] += 1.0
    model = Metacontroller(5, code=3, hidden=8)
    assert not torch.allclose(model.discover(residual).codes[:, 0], model.discover(other).codes[:, 0])
    policy = CodePolicy(5, code=3, hidden=8)
    torch.nn.init.normal_(policy.head[-1].weight)
    states = [None, None]
    for t in range(6):
        (mean, log_std, states[0]), (twin, _, states[1]) = (
            policy(x[:, t], s) for x, s in zip((residual, other), states, strict=True)
        )
        assert torch.equal(mean, twin) == (t < 4)
        assert log_std.shape == (2, 3)


def test_every_part_learns_and_the_residuals_do_not():
    model = Metacontroller(6, code=3, rank=2, hidden=8, openness=1.0)
    residual = noise(4, 5, 6)
    found = model.discover(residual, noise(4, 5, 3))
    discovery_loss(found.controlled.square().sum(-1), found.kl, torch.ones(4, 5).bool()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert name.endswith("bias_hh_l0") or parameter.grad.abs().sum() > 0, name
    assert residual.grad is None


def test_first_codes_are_drawn_from_the_prior():
    mean, log_std, _ = CodePolicy(5, code=3, hidden=8)(noise(2, 5))
    assert (mean == 0).all()
    assert (log_std == 0).all()
