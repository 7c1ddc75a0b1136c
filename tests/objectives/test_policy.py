import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.errors import RecipeError
from guerdon.objectives import cispo, dapo, gmpo, gspo, gspo_token, ppo_clip, reinforce, sapo, surrogate
from guerdon.registry import get, methods

quick = settings(derandomize=True, deadline=None, max_examples=30)
SEEDS = st.integers(0, 10**6)
# Those that read nothing but a ratio and its credit; the others have tests of their own.
PLAIN = {"logp", "old_logp", "advantage", "mask", "step"}
NAMES = [
    method.name
    for method in methods("objective")
    if set(method.requires) <= PLAIN and "aggregate" in method.options.model_fields
]
NAN = float("nan")


def batch(seed, n=5, t=6, spread=0.5, dtype=torch.float64):
    """Ragged batch with holes, one advantage per trajectory (one of them 0)."""
    random = torch.Generator().manual_seed(seed)
    old = -3 * torch.rand(n, t, generator=random, dtype=dtype)
    logp = old + spread * torch.randn(n, t, generator=random, dtype=dtype)
    advantage = torch.randn(n, 1, generator=random, dtype=dtype).expand(n, t).clone()
    advantage[-1] = 0.0
    mask = torch.rand(n, t, generator=random) > 0.3
    return logp.requires_grad_(), old, advantage * mask, mask


def run(name, logp, old, advantage, mask, **options):
    fields = {"logp": logp, "old_logp": old, "advantage": advantage, "mask": mask, "step": 3}
    outcome = get("objective", name).bind(options)(fields)
    return outcome.fields["loss"], outcome.stats


def gradient(loss, logp):
    return torch.autograd.grad(loss, logp, retain_graph=True)[0]


def assert_same(actual, expected, logp):
    """Equal loss and equal gradient."""
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(gradient(actual, logp), gradient(expected, logp))


def textbook_ppo(logp, old, advantage, low, high):
    ratio = (logp - old).exp()
    return torch.min(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)


@quick
@given(SEEDS)
def test_ppo_clip_is_exactly_the_textbook_minimum(seed):
    logp, old, advantage, mask = batch(seed)
    loss, _ = ppo_clip(logp, old, advantage, mask, clip_low=0.2, clip_high=0.3)
    expected = -(textbook_ppo(logp, old, advantage, 0.2, 0.3) * mask).sum() / mask.sum()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-14, abs=1e-15)
    assert torch.equal(gradient(loss * mask.sum(), logp), gradient(expected * mask.sum(), logp))


@quick
@given(SEEDS)
def test_dual_clip_bounds_negative_advantages_from_below(seed):
    logp, old, advantage, mask = batch(seed, spread=2.0)
    loss, _ = ppo_clip(logp, old, advantage, mask, dual_clip=3.0)
    single = textbook_ppo(logp, old, advantage, 0.2, 0.2)
    dual = torch.where(advantage < 0, torch.max(single, 3.0 * advantage), single)
    assert_same(loss, -(dual * mask).sum() / mask.sum(), logp)


@quick
@given(SEEDS)
def test_dapo_and_the_registered_defaults(seed):
    logp, old, advantage, mask = batch(seed)
    wide = -(textbook_ppo(logp, old, advantage, 0.2, 0.28) * mask).sum() / mask.sum()
    assert_same(dapo(logp, old, advantage, mask)[0], wide, logp)
    plain = -(textbook_ppo(logp, old, advantage, 0.2, 0.2) * mask).sum() / mask.sum()
    assert_same(ppo_clip(logp, old, advantage, mask)[0], plain, logp)


def test_grpo_and_dr_grpo_losses_are_aggregations_of_ppo_clip():
    logp, old, advantage, mask = batch(6)
    per_action = textbook_ppo(logp, old, advantage, 0.2, 0.2) * mask
    grpo = -torch.stack([row.sum() / m.sum() for row, m in zip(per_action, mask, strict=True) if m.any()]).mean()
    assert_same(ppo_clip(logp, old, advantage, mask, aggregate="seq_mean")[0], grpo, logp)
    dr_grpo, _ = ppo_clip(logp, old, advantage, mask, aggregate="sum_over_max_length", max_length=100)
    assert_same(dr_grpo, -per_action.sum() / (5 * 100), logp)
    valid, _ = ppo_clip(logp, old, advantage, mask, aggregate="valid_token_mean")
    assert_same(valid, -per_action.sum() / mask[:-1].sum(), logp)  # the last trajectory has no credit


@quick
@given(SEEDS)
def test_gspo_one_trajectory_at_a_time(seed):
    logp, old, advantage, mask = batch(seed, spread=0.002)
    terms = []
    for row in range(len(mask)):
        acted = mask[row]
        if acted.any():
            s = (logp[row][acted] - old[row][acted]).mean().exp()
            a = advantage[row][acted][0]
            terms.append(torch.min(s * a, s.clamp(1 - 3e-4, 1 + 4e-4) * a))
    expected = -torch.stack(terms).mean()
    assert_same(gspo(logp, old, advantage, mask)[0], expected, logp)
    assert_same(gspo_token(logp, old, advantage, mask)[0], expected, logp)


def test_gspo_token_lets_the_credit_vary_within_a_trajectory():
    logp, old, _, mask = batch(2, spread=0.0)
    mask[:] = True
    advantage = torch.arange(30.0, dtype=torch.float64).reshape(5, 6)
    loss, _ = gspo_token(logp, old, advantage, mask)
    torch.testing.assert_close(gradient(loss, logp), -advantage / 30)


@quick
@given(SEEDS)
def test_gmpo_one_trajectory_at_a_time(seed):
    logp, old, advantage, mask = batch(seed, spread=0.6)
    terms = []
    for row in range(len(mask)):
        acted = mask[row]
        if acted.any():
            a, product = advantage[row][acted][0], 1.0
            for x in (logp[row] - old[row])[acted].exp():
                product = product * (x.clamp(max=math.exp(0.4)) if a > 0 else x.clamp(min=math.exp(-0.4)))
            terms.append(a * product ** (1 / acted.sum().item()))
    assert_same(gmpo(logp, old, advantage, mask)[0], -torch.stack(terms).mean(), logp)


def test_cispo_keeps_the_gradient_of_a_capped_token():
    old = torch.zeros(1, 4)
    logp = torch.log(torch.tensor([[20.0, 0.5, 20.0, 0.5]])).requires_grad_()
    advantage, mask = torch.tensor([[1.0, 1.0, -2.0, -2.0]]), torch.ones(1, 4, dtype=torch.bool)
    loss, stats = cispo(logp, old, advantage, mask)
    assert (4 * gradient(loss, logp)).tolist()[0] == pytest.approx([-5, -0.5, 10, 1])
    assert stats["clip_fraction"] == 0.5
    window, _ = cispo(logp, old, advantage, mask, clip_low=0.2, clip_high=0.2)
    assert (4 * gradient(window, logp)).tolist()[0] == pytest.approx([-1.2, -0.8, 2.4, 1.6])


def test_sapo_by_hand():
    old = torch.zeros(2, 1, dtype=torch.float64)
    logp = torch.log(torch.tensor([[2.0], [2.0]], dtype=torch.float64)).requires_grad_()
    advantage, mask = torch.tensor([[1.0], [-1.0]], dtype=torch.float64), torch.ones(2, 1, dtype=torch.bool)
    loss, stats = sapo(logp, old, advantage, mask)
    sigma = [1 / (1 + math.exp(-tau)) for tau in (1.0, 1.05)]
    assert loss.item() == pytest.approx((-4 * sigma[0] + 4 / 1.05 * sigma[1]) / 2)
    # df/dlog rho = 4 sigma (1 - sigma) rho
    expected = [-4 * sigma[0] * (1 - sigma[0]), 4 * sigma[1] * (1 - sigma[1])]
    assert gradient(loss, logp).flatten().tolist() == pytest.approx(expected)
    assert stats["clip_fraction"] == 0


def test_reinforce_is_minus_advantage_times_log_probability():
    logp, _, advantage, mask = batch(9)
    expected = -(logp * advantage)[mask].sum() / mask.sum()
    assert_same(reinforce(logp, advantage, mask), expected, logp)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "clip_cov"])
@quick
@given(SEEDS)
def test_on_policy_every_objective_has_the_plain_policy_gradient(name, seed):
    logp, _, advantage, mask = batch(seed)
    for aggregate in ("seq_mean", "token_mean", "valid_token_mean"):
        # A ratio of whole trajectories spreads each trajectory's credit evenly over its own actions.
        whole = {"tau": 0.0} if name == "opmd" else {}  # which divides by 1 + tau
        loss, _ = run(name, logp, logp.detach(), advantage, mask, aggregate=aggregate, **whole)
        plain = reinforce(logp, advantage, mask, aggregate=aggregate)
        torch.testing.assert_close(gradient(loss, logp), gradient(plain, logp))


def test_an_external_demonstration_is_a_mixture_of_old_policies():
    """RL-PLUS: rho = 2 pi / (1.5 pi_old + 0.5), unclipped, with gradient through pi."""
    probability = torch.tensor([[0.01, 1.0, 0.3]], dtype=torch.float64)
    logp = probability.log().requires_grad_()
    mixture = torch.log((1.5 * probability + 0.5) / 2)
    advantage, mask = torch.ones(1, 3, dtype=torch.float64), torch.ones(1, 3, dtype=torch.bool)
    loss, _ = surrogate(logp, mixture, advantage, mask, aggregate="sum_over_max_length", max_length=1)
    expected = [2 * p / (1.5 * p + 0.5) for p in (0.01, 1.0, 0.3)]
    assert expected[:2] == pytest.approx([0.0388, 1.0], abs=1e-4)
    assert (-gradient(loss, logp)).tolist()[0] == pytest.approx(expected)


def test_oreal_is_two_weighted_surrogates():
    """Positives clone with weight w+, negatives use pi / sg pi with weight w-; divisors count all their tokens."""
    logp, _, _, mask = batch(3, n=2)
    advantage = torch.tensor([[0.5], [-0.25]], dtype=torch.float64).expand(2, 6)
    weight = torch.linspace(0, 1, 12, dtype=torch.float64).reshape(2, 6)
    positive = advantage > 0
    clone, _ = surrogate(logp, logp, advantage, mask & positive, weight, gradient="score")
    push, _ = surrogate(logp, logp, advantage, mask & ~positive, weight)
    count = torch.where(positive, (mask & positive).sum(), (mask & ~positive).sum())
    expected = -weight * advantage / count * mask
    torch.testing.assert_close(gradient(clone + push, logp), expected)


@pytest.mark.parametrize("mode", ["ratio", "score"])
def test_weight_does_not_enter_the_divisor_and_takes_no_gradient(mode):
    logp, old, advantage, mask = batch(5)
    weight = torch.full_like(old, 0.5).masked_fill(~mask, NAN).requires_grad_()
    loss, _ = surrogate(logp, old, advantage, mask, weight, gradient=mode)
    assert_same(loss, surrogate(logp, old, advantage, mask, gradient=mode)[0] / 2, logp)
    loss.backward()
    assert weight.grad is None


@pytest.mark.parametrize("name", NAMES)
@quick
@given(SEEDS)
def test_entries_off_the_mask_never_matter(name, seed):
    logp, old, advantage, mask = batch(seed)
    loss, stats = run(name, logp, old, advantage, mask)
    clean = gradient(loss, logp)
    assert clean.isfinite().all()
    assert (clean[~mask] == 0).all()
    for garbage in (NAN, math.inf, -math.inf, 1e30):
        dirty = logp.detach().masked_fill(~mask, garbage).requires_grad_()
        spoiled = [x.masked_fill(~mask, garbage) for x in (old, advantage)]
        again, same_stats = run(name, dirty, *spoiled, mask)
        assert torch.equal(again, loss)
        assert same_stats == stats
        assert torch.equal(gradient(again, dirty), clean)


@pytest.mark.parametrize("name", NAMES)
@quick
@given(SEEDS)
def test_padding_and_order_of_trajectories_change_nothing(name, seed):
    logp, old, advantage, mask = batch(seed)
    loss, stats = run(name, logp, old, advantage, mask)
    pad = torch.full((5, 3), NAN, dtype=torch.float64)
    padded, padded_stats = run(
        name, *(torch.cat([x, pad], dim=1) for x in (logp, old, advantage)), torch.cat([mask, pad == 0], dim=1)
    )
    torch.testing.assert_close(padded, loss)
    torch.testing.assert_close(gradient(padded, logp), gradient(loss, logp))
    assert padded_stats == pytest.approx(stats)
    order = torch.tensor([3, 0, 4, 1, 2])
    moved, moved_stats = run(name, logp[order], old[order], advantage[order], mask[order])
    if name != "clip_cov":  # which of several candidates it draws depends on their order
        torch.testing.assert_close(moved, loss)
        assert moved_stats == pytest.approx(stats)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("aggregate", ["seq_mean", "token_mean", "sum_over_max_length", "valid_token_mean"])
def test_a_batch_without_actions_or_without_credit(name, aggregate):
    options = {"aggregate": aggregate, "max_length": 6}
    logp, old, advantage, mask = batch(1)
    for chosen_advantage, chosen_mask in ((advantage, torch.zeros_like(mask)), (torch.zeros_like(advantage), mask)):
        if name == "kl_cov" and chosen_mask.any():
            continue  # it penalises movement, not credit
        loss, stats = run(name, logp, old, chosen_advantage, chosen_mask, **options)
        assert loss.item() == 0
        assert (gradient(loss, logp) == 0).all()
        assert all(math.isfinite(value) for value in stats.values())


@pytest.mark.parametrize("name", NAMES)
def test_ratios_beyond_float_range_stay_finite(name):
    mask = torch.ones(1, 4, dtype=torch.bool)
    logp = torch.tensor([[0.0, -800.0, 0.0, -800.0]], requires_grad=True)
    old = torch.tensor([[-800.0, 0.0, -800.0, 0.0]])
    loss, stats = run(name, logp, old, torch.tensor([[1.0, 1.0, -1.0, -1.0]]), mask)
    assert loss.isfinite()
    assert gradient(loss, logp).isfinite().all()
    assert all(math.isfinite(value) for value in stats.values())


def test_advantage_and_old_policy_are_constants():
    logp, old, advantage, mask = batch(7)
    old, advantage = old.requires_grad_(), advantage.requires_grad_()
    ppo_clip(logp, old, advantage, mask)[0].backward()
    assert old.grad is None
    assert advantage.grad is None
    assert logp.grad is not None


def test_a_looser_log_ratio_bound_is_an_argument():
    """StableReinforce clamps the log-ratio to ± ln 1000 before the clip."""
    logp = torch.tensor([[200.0]], requires_grad=True)
    loss, _ = surrogate(
        logp,
        torch.zeros(1, 1),
        -torch.ones(1, 1),
        torch.ones(1, 1),
        hi_pos=1.2,
        lo_neg=0.8,
        max_log_ratio=math.log(1000),
    )
    assert loss.item() == pytest.approx(1000)
    assert gradient(loss, logp).item() == 0


def test_stats_by_hand():
    ratio = torch.tensor([[1.5, 0.5, 1.5, 0.5, 1.5, 1.0]], dtype=torch.float64)
    advantage = torch.tensor([[1.0, 1.0, -1.0, -1.0, 0.0, 1.0]], dtype=torch.float64)
    mask = torch.ones(1, 6, dtype=torch.bool)
    _, stats = ppo_clip(ratio.log(), torch.zeros(1, 6, dtype=torch.float64), advantage, mask)
    assert stats["ratio"] == pytest.approx(6.5 / 6)
    assert stats["clip_fraction"] == pytest.approx(2 / 6)  # too high with A > 0, too low with A < 0
    k3 = 3 * (0.5 - math.log(1.5)) + 2 * (-0.5 - math.log(0.5))
    assert stats["approx_kl"] == pytest.approx(k3 / 6)
    _, stats = gmpo(ratio.log(), torch.zeros(1, 6, dtype=torch.float64), advantage, mask)
    assert stats["clip_fraction"] == pytest.approx(2 / 6)  # ln 1.5 > 0.4 and ln 0.5 < -0.4
    with_dual = ppo_clip(ratio.log(), torch.zeros(1, 6, dtype=torch.float64), advantage, mask, dual_clip=1.4)[1]
    assert with_dual["clip_fraction"] == pytest.approx(3 / 6)


def test_bad_input_is_refused():
    logp, old, advantage, mask = batch(0)
    with pytest.raises(ValueError, match=r"advantage has shape \(5, 1\), mask \(5, 6\)"):
        ppo_clip(logp, old, advantage[:, :1], mask)
    with pytest.raises(RecipeError, match="max_length"):
        ppo_clip(logp, old, advantage, mask, aggregate="sum_over_max_length")
    with pytest.raises(RecipeError, match=r"'ppo_clip'.*'aggregate' is 'mean'"):
        get("objective", "ppo_clip").bind({"aggregate": "mean"})
