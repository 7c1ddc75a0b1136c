"""Samplers against the exact 1-D Gaussian: data N(1.5, .5^2), whose velocity, noise and score are closed forms."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from guerdon.errors import RecipeError
from guerdon.policies.flow_steps import SDEStep, alpha_bar
from guerdon.seeding import torch_generator

MEAN, STD = 1.5, 0.5
DOUBLE = torch.float64


def moments(t):
    """Mean and variance of x_t = (1 - t) x_0 + t x_1."""
    return (1 - t) * MEAN, ((1 - t) * STD) ** 2 + t**2


def velocity(x, t):
    """E[x_1 - x_0 | x_t]: regression of a jointly Gaussian pair."""
    mean, variance = moments(t)
    return -MEAN + (t - (1 - t) * STD**2) / variance * (x - mean)


def noise_prediction(x, t):
    """E[x_1 | x_t] with x_t = sqrt(A) x_0 + sqrt(1 - A) x_1."""
    share = float(alpha_bar(torch.tensor(t, dtype=DOUBLE)))
    variance = share * STD**2 + 1 - share
    return math.sqrt(1 - share) / variance * (x - math.sqrt(share) * MEAN)


def final_moments(sampler, steps, network=velocity):
    """Mean and std of the sample, exactly: each step is affine in x, so two points give its slope and offset."""
    mean, variance = 0.0, 1.0
    x = torch.tensor([[0.0], [1.0]], dtype=DOUBLE)
    for k in range(steps, 0, -1):
        t, t_next = k / steps, (k - 1) / steps
        step = sampler.step(network(x, t), x, t, t_next)
        offset, slope = float(step.mean[0]), float(step.mean[1] - step.mean[0])
        mean, variance = offset + slope * mean, slope**2 * variance + float(step.std[0]) ** 2
    return mean, math.sqrt(variance)


def langevin_moments(steps, noise):
    """The same by the score form dx = -(v - s^2/2 score) dt + s dW with the exact Gaussian score, in plain floats."""
    mean, variance = 0.0, 1.0
    for k in range(steps, 0, -1):
        t, dt = k / steps, 1 / steps
        m, var = moments(t)
        s2 = noise(t, dt) ** 2
        slope_v = (t - (1 - t) * STD**2) / var
        slope = 1 - dt * slope_v - dt * s2 / (2 * var)
        mean = slope * (mean - m) + m + dt * MEAN
        variance = slope**2 * variance + s2 * dt
    return mean, math.sqrt(variance)


def flow_noise(t, dt):
    return 0.7 * math.sqrt(t / (dt if t == 1 else 1 - t))


@pytest.mark.parametrize(
    ("sampler", "noise", "steps", "std"),
    [
        (SDEStep("ode"), lambda t, dt: 0.0, 10, 0.431),
        (SDEStep("flow_sde", 0.7), flow_noise, 10, 0.480),
        (SDEStep("dance_sde", 0.3), lambda t, dt: 0.3, 10, 0.442),
        (SDEStep("ode"), lambda t, dt: 0.0, 1000, 0.499),
        (SDEStep("flow_sde", 0.7), flow_noise, 1000, 0.501),
        (SDEStep("dance_sde", 0.3), lambda t, dt: 0.3, 1000, 0.499),
    ],
)
def test_sample_moments_equal_the_score_form(sampler, noise, steps, std):
    mean, spread = final_moments(sampler, steps)
    expected_mean, expected_std = langevin_moments(steps, noise)
    assert mean == pytest.approx(expected_mean, abs=1e-9)
    assert spread == pytest.approx(expected_std, abs=1e-9)
    assert spread == pytest.approx(std, abs=6e-4)


@pytest.mark.parametrize("kind", ["ode", "dance_sde"])
def test_marginals_converge_at_first_order(kind):
    coarse = final_moments(SDEStep(kind), 500)[1] - STD
    fine = final_moments(SDEStep(kind), 2000)[1] - STD
    assert abs(coarse) < 3e-3
    assert fine / coarse == pytest.approx(0.25, abs=0.02)


def test_cps_does_not_keep_the_marginals():
    """Without noise it is the ODE; with it the limit has too little spread."""
    assert final_moments(SDEStep("cps", 0.0), 50)[1] == pytest.approx(final_moments(SDEStep("ode"), 50)[1], abs=1e-12)
    assert final_moments(SDEStep("cps", 0.7), 1000)[1] == pytest.approx(0.4245, abs=5e-4)


def test_marginals_of_flow_sde_converge():
    """Slowly: its noise is singular at t = 1, where the first step's stays a however short the step."""
    errors = [abs(final_moments(SDEStep("flow_sde"), steps)[1] - STD) for steps in (1000, 4000)]
    assert errors[1] < 0.65 * errors[0] < 0.65e-3


def test_cps_keeps_the_noise_level():
    """Coefficients of x_1 in the mean and of the fresh noise add up to t' in square, of x_0 to 1 - t'."""
    t, t_next = 0.6, 0.35
    x_0, x_1 = torch.tensor([[2.0, 0.0]], dtype=DOUBLE), torch.tensor([[0.0, 1.0]], dtype=DOUBLE)
    step = SDEStep("cps", 0.7).step(x_1 - x_0, (1 - t) * x_0 + t * x_1, t, t_next)
    assert step.mean[0, 0].item() == pytest.approx(2 * 0.65)
    assert step.mean[0, 1].item() ** 2 + step.std[0].item() ** 2 == pytest.approx(0.35**2)
    assert step.std[0].item() == pytest.approx(0.35 * math.sin(0.35 * math.pi))


@pytest.mark.parametrize("t", [0.05, 0.4, 0.9, 1.0])
def test_score_identity(t):
    """What the noise adds to the drift is sigma^2 / 2 times the score of the exact marginal."""
    x = torch.tensor([[-1.3], [0.2], [2.4]], dtype=DOUBLE)
    mean, variance = moments(t)
    v, dt = velocity(x, t), 0.05
    quiet = SDEStep("ode").step(v, x, t, t - dt).mean
    for sampler in (SDEStep("flow_sde", 0.7), SDEStep("dance_sde", 0.3)):
        noisy = sampler.step(v, x, t, t - dt)
        sigma2 = noisy.std.unsqueeze(-1) ** 2 / dt
        score = (noisy.mean - quiet) / (0.5 * sigma2 * dt)
        torch.testing.assert_close(score, -(x - mean) / variance, rtol=1e-10, atol=1e-10)


def test_flow_sde_step_by_hand():
    """sigma^2 = .25 * .5 / .5 = .25; mean = 1 - (2 + .25 / 1 * (1 + 1)) * .1 = .75; std = .5 sqrt(.1)."""
    step = SDEStep("flow_sde", 0.5).step(torch.tensor([[2.0]]), torch.tensor([[1.0]]), 0.5, 0.4)
    assert step.mean.item() == pytest.approx(0.75)
    assert step.std.item() == pytest.approx(0.5 * math.sqrt(0.1))


def test_flow_sde_takes_the_second_grid_point_at_pure_noise():
    """sigma_1 = .7 sqrt(1 / (1 - .9))."""
    std = SDEStep("flow_sde", 0.7).std(torch.tensor(1.0), torch.tensor(0.9))
    assert std.item() == pytest.approx(0.7 * math.sqrt(1 / 0.1) * math.sqrt(0.1), rel=1e-6)


def test_monte_carlo_of_ten_steps():
    """200,000 chains with drawn noise; bounds of five standard errors of the mean and of the std."""
    n, generator = 200_000, torch_generator(0, "gaussian chain")
    x = torch.randn(n, 1, generator=generator)
    sampler = SDEStep("flow_sde", 0.7)
    for k in range(10, 0, -1):
        noise = torch.randn(n, 1, generator=generator)
        x = sampler.step(velocity(x, k / 10), x, k / 10, (k - 1) / 10, noise=noise).x_next
    mean, std = langevin_moments(10, flow_noise)
    assert x.mean().item() == pytest.approx(mean, abs=5 * std / math.sqrt(n))
    assert x.std().item() == pytest.approx(std, abs=5 * std / math.sqrt(2 * n))


def test_ddim_with_full_noise_draws_from_the_gaussian_bridge():
    """With eta = 1 the step is the exact posterior of x' given x and x_0 = its prediction (DDPM)."""
    t, t_next = torch.tensor([0.7], dtype=DOUBLE), torch.tensor([0.5], dtype=DOUBLE)
    now, after = alpha_bar(t), alpha_bar(t_next)
    x, eps = torch.tensor([[0.8]], dtype=DOUBLE), torch.tensor([[0.3]], dtype=DOUBLE)
    clean = (x - (1 - now).sqrt() * eps) / now.sqrt()
    keep = now / after
    precision = keep / (1 - keep) + 1 / (1 - after)
    mean = (keep.sqrt() * x / (1 - keep) + after.sqrt() * clean / (1 - after)) / precision
    step = SDEStep("ddim", 1.0).step(eps, x, t, t_next)
    torch.testing.assert_close(step.mean, mean)
    torch.testing.assert_close(step.std**2, 1 / precision)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_converges_to_the_data(eta):
    mean, std = final_moments(SDEStep("ddim", eta), 1000, noise_prediction)
    # The chain starts from N(0, 1), where the schedule still holds sqrt(.0048) of the signal.
    assert mean == pytest.approx(MEAN, abs=0.06)
    assert std == pytest.approx(STD, abs=6e-3)


def test_signal_share_is_that_of_a_thousand_scaled_linear_steps():
    betas = torch.linspace(math.sqrt(0.00085), math.sqrt(0.012), 1000, dtype=DOUBLE) ** 2
    released = torch.cumprod(1 - betas, 0)
    ours = alpha_bar(torch.arange(1, 1001, dtype=DOUBLE) / 1000)
    torch.testing.assert_close(ours, released, rtol=0.03, atol=2e-3)
    assert alpha_bar(torch.tensor(0.0)) == 1


# Log-probability, entropy, divergence ---------------------------------------------------------------------


@pytest.mark.parametrize("reduce", ["mean", "sum"])
@pytest.mark.parametrize("kind", ["flow_sde", "dance_sde", "ddim"])
def test_logp_and_entropy_are_those_of_the_normal_distribution(kind, reduce):
    generator = torch_generator(1, kind)
    v, x, x_next = (torch.randn(5, 3, generator=generator) for _ in range(3))
    sampler = SDEStep(kind, logp_reduce=reduce)
    step = sampler.step(v, x, 0.6, 0.5, x_next=x_next)
    normal = torch.distributions.Normal(step.mean, step.std.unsqueeze(-1))
    together = torch.mean if reduce == "mean" else torch.sum
    torch.testing.assert_close(step.logp, together(normal.log_prob(x_next), dim=-1))
    torch.testing.assert_close(sampler.entropy(step.std, 3), together(normal.entropy().expand(5, 3), dim=-1))
    assert torch.equal(step.x_next, x_next)


def test_cps_logp_is_the_released_negative_square():
    """x0 = (0, 1), x1 = (1, 0), mean = (.4 cos(.35 pi), .6), so the squares are .1816^2 and .4^2."""
    v, x, x_next = torch.tensor([[1.0, -1.0]]), torch.tensor([[0.5, 0.5]]), torch.tensor([[0.0, 1.0]])
    logp = SDEStep("cps", 0.7).step(v, x, 0.5, 0.4, x_next=x_next).logp
    assert logp.item() == pytest.approx(-(0.181596**2 + 0.16) / 2, abs=1e-6)
    total = SDEStep("cps", 0.7, "sum").step(v, x, 0.5, 0.4, x_next=x_next).logp
    assert total.item() == pytest.approx(2 * logp.item())


@pytest.mark.parametrize("kind", ["flow_sde", "dance_sde", "cps", "ddim"])
def test_exact_kl_is_that_of_the_normal_distributions(kind):
    generator = torch_generator(2, kind)
    v, v_ref, x = (torch.randn(4, 3, generator=generator) for _ in range(3))
    sampler = SDEStep(kind, 0.6)
    now, ref = (sampler.step(u, x, 0.6, 0.5) for u in (v, v_ref))
    scale = now.std.unsqueeze(-1)
    normals = torch.distributions.Normal(now.mean, scale), torch.distributions.Normal(ref.mean, scale)
    expected = torch.distributions.kl_divergence(*normals).sum(dim=-1)
    torch.testing.assert_close(sampler.step_kl(v, v_ref, x, 0.6, 0.5), expected)


def test_flow_sde_kl_in_the_closed_form_of_the_paper():
    """(dt / 2) (1 / sigma + sigma (1 - t) / (2 t))^2 |v - v_ref|^2, and its released form without dt, over D."""
    v, v_ref, x = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, 4.0]]), torch.tensor([[0.3, -0.3]])
    t, t_next, sampler = 0.6, 0.5, SDEStep("flow_sde", 0.7)
    sigma = 0.7 * math.sqrt(1.5)
    expected = 0.05 * (1 / sigma + sigma * 0.4 / 1.2) ** 2 * 4.25
    assert sampler.step_kl(v, v_ref, x, t, t_next).item() == pytest.approx(expected, rel=1e-5)
    official = sampler.step_kl(v, v_ref, x, t, t_next, kind="official").item()
    assert official == pytest.approx(expected * 0.1 / 2, rel=1e-5)
    assert sampler.step_kl(v, v_ref, x, t, t_next, kind="velocity").item() == pytest.approx(4.25 / 2)


def test_official_kl_of_cps_takes_std_for_sigma():
    v, v_ref, x = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, 4.0]]), torch.tensor([[0.3, -0.3]])
    sampler = SDEStep("cps", 0.7)
    exact = sampler.step_kl(v, v_ref, x, 0.6, 0.5)
    torch.testing.assert_close(sampler.step_kl(v, v_ref, x, 0.6, 0.5, kind="official"), exact / 2)


@pytest.mark.parametrize(("kind", "a"), [("flow_sde", 0.0), ("dance_sde", 0.0), ("cps", 0.0), ("ode", None)])
def test_without_noise_every_flow_sampler_is_the_ode(kind, a):
    v, x = torch.tensor([[1.0, -2.0]], requires_grad=True), torch.tensor([[0.4, 0.6]])
    step = SDEStep(kind, a).step(v, x, 1.0, 0.8, noise=torch.ones(1, 2))
    torch.testing.assert_close(step.x_next, x - 0.2 * v)
    assert step.std.item() == 0
    assert step.logp.item() == 0


@pytest.mark.parametrize("kind", ["flow_sde", "dance_sde", "cps", "ode", "ddim"])
def test_a_deterministic_step_has_no_logp_no_kl_and_finite_gradients(kind):
    v = torch.tensor([[1.0, -2.0], [0.5, 3.0]], requires_grad=True)
    x, a = torch.zeros(2, 2), torch.tensor([0.0, 0.5])
    sampler = SDEStep(kind)
    step = sampler.step(v, x, 0.6, 0.5, a=a, x_next=torch.ones(2, 2))
    kl = sampler.step_kl(v, torch.zeros(2, 2), x, 0.6, 0.5, a=a)
    assert step.logp[0] == 0
    assert kl[0] == 0
    assert sampler.entropy(step.std, 2)[0] == 0
    (step.logp + kl + step.mean.sum(dim=1)).sum().backward()
    assert v.grad is not None
    assert torch.isfinite(v.grad).all()
    assert (kl[1] > 0) == (kind != "ode")


@given(
    st.sampled_from(["flow_sde", "dance_sde", "cps", "ddim"]),
    st.lists(st.tuples(st.floats(0.05, 1.0), st.floats(0.0, 0.95), st.floats(0.0, 1.0)), min_size=1, max_size=6),
)
def test_rows_with_times_and_scales_of_their_own_equal_rows_taken_alone(kind, rows):
    t = torch.tensor([r[0] for r in rows], dtype=DOUBLE)
    t_next = t * torch.tensor([r[1] for r in rows], dtype=DOUBLE)
    a = torch.tensor([r[2] for r in rows], dtype=DOUBLE)
    generator = torch_generator(3, len(rows))
    v, x, noise = (torch.randn(len(rows), 2, generator=generator, dtype=DOUBLE) for _ in range(3))
    together = SDEStep(kind).step(v, x, t, t_next, a=a, noise=noise)
    for i in range(len(rows)):
        alone = SDEStep(kind, float(a[i])).step(v[i], x[i], float(t[i]), float(t_next[i]), noise=noise[i])
        for ours, theirs in zip(together, alone, strict=True):
            torch.testing.assert_close(ours[i], theirs)
            assert torch.isfinite(ours[i]).all()


def test_half_precision_is_computed_in_float32():
    v, x = torch.randn(2, 3, generator=torch_generator(4)), torch.ones(2, 3)
    half = SDEStep().step(v.bfloat16(), x.bfloat16(), 0.6, 0.5)
    assert half.mean.dtype == half.logp.dtype == torch.float32
    torch.testing.assert_close(half.mean, SDEStep().step(v.bfloat16().float(), x, 0.6, 0.5).mean)


@pytest.mark.parametrize(("kind", "a"), [("flow_sde", -0.1), ("cps", 1.2), ("ddim", 1.5)])
def test_a_scale_out_of_range_is_refused(kind, a):
    with pytest.raises(RecipeError, match=f"noise of sampler '{kind}' is {a}"):
        SDEStep(kind, a)


def test_noised_pairs_are_the_path_and_its_target():
    x_0, x_1 = torch.tensor([[2.0]]), torch.tensor([[-1.0]])
    x, target = SDEStep("flow_sde").noised(x_0, x_1, torch.tensor([0.25]))
    assert x.item() == pytest.approx(0.75 * 2 - 0.25)
    assert target.item() == -3
    share = float(alpha_bar(torch.tensor(0.25)))
    x, target = SDEStep("ddim").noised(x_0, x_1, torch.tensor([0.25]))
    assert x.item() == pytest.approx(math.sqrt(share) * 2 - math.sqrt(1 - share))
    assert target.item() == -1
