import pytest
import torch

from guerdon.objectives import clip_cov, kl_cov, ppo_clip, surrogate, token_covariance


def batch(n=6, t=50):
    random = torch.Generator().manual_seed(0)
    old = -4 * torch.rand(n, t, generator=random, dtype=torch.float64)
    logp = (old + 0.2 * torch.randn(n, t, generator=random, dtype=torch.float64)).requires_grad_()
    advantage = 2 * torch.randn(n, t, generator=random, dtype=torch.float64)
    mask = torch.rand(n, t, generator=random) > 0.2
    return logp, old, advantage, mask


def gradient(loss, logp):
    return torch.autograd.grad(loss, logp, retain_graph=True)[0]


def test_token_covariance_by_hand():
    logp = torch.tensor([[-1.0, -3.0, float("nan")], [-2.0, float("inf"), -2.0]])
    advantage = torch.tensor([[2.0, 0.0, 9.0], [-1.0, float("nan"), -1.0]])
    mask = torch.tensor([[True, True, False], [True, False, True]])
    out = token_covariance(logp, advantage, mask)  # means -2 and 0
    assert out.tolist() == [[2, 0, float("-inf")], [0, float("-inf"), 0]]
    assert out[mask].mean() == torch.cov(torch.stack([logp[mask], advantage[mask]]), correction=0)[0, 1]


@pytest.mark.parametrize(("share", "expected"), [(0.0001, 1), (0.02, 4), (1.0, None)])
def test_clip_cov_holds_back_its_share_of_the_interval(share, expected):
    logp, old, advantage, mask = batch()
    cov = token_covariance(logp, advantage, mask)
    ratio = (logp - old).exp()
    clipped = ((advantage > 0) & (ratio > 1.2)) | ((advantage < 0) & (ratio < 0.8))
    inside = (cov > 1) & (cov < 5) & mask
    eligible = inside & ~clipped
    assert (inside & clipped).any()
    if expected is None:
        expected = int(eligible.sum())
    assert 4 < eligible.sum() < mask.sum() / 2
    loss, stats = clip_cov(logp, old, advantage, mask, 3, share=share)
    plain, _ = ppo_clip(logp, old, advantage, mask)
    changed = gradient(loss, logp) != gradient(plain, logp)
    assert int(changed.sum()) == expected
    assert (eligible | ~changed).all()
    assert (gradient(loss, logp)[changed] == 0).all()
    assert stats["selected_fraction"] == pytest.approx(expected / int(mask.sum()))
    kept = torch.where(changed, 0.0, torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage))
    torch.testing.assert_close(loss, -kept[mask].sum() / mask.sum())


def test_clip_cov_draws_by_step_and_seed_alone():
    logp, old, advantage, mask = batch()

    def drawn(step, seed=0):
        torch.rand(1)  # the global generator plays no part
        loss, _ = clip_cov(logp, old, advantage, mask, step, share=0.02, seed=seed)
        return tuple((gradient(loss, logp) == 0).logical_and(mask).flatten().nonzero().squeeze(1).tolist())

    assert drawn(3) == drawn(3) == drawn(torch.tensor(3))
    assert len({drawn(step) for step in range(6)}) > 1
    assert len({drawn(3, seed) for seed in range(6)}) > 1


def test_clip_cov_without_candidates_is_ppo_clip():
    logp, old, advantage, mask = batch()
    loss, stats = clip_cov(logp, old, advantage, mask, 0, cov_low=1e6, cov_high=1e7)
    assert torch.equal(loss, ppo_clip(logp, old, advantage, mask)[0])
    assert stats["selected_fraction"] == 0


@pytest.mark.parametrize(("share", "count"), [(1e-9, 1), (0.05, None)])
def test_kl_cov_penalises_the_actions_of_largest_covariance(share, count):
    logp, old, advantage, mask = batch()
    tokens = int(mask.sum())
    count = int(share * tokens) if count is None else count
    assert count < tokens / 2
    cov = token_covariance(logp, advantage, mask)
    chosen = cov >= cov[mask].sort(descending=True).values[count - 1]
    loss, stats = kl_cov(logp, old, advantage, mask, share=share, kl_coef=0.7)
    plain, _ = surrogate(logp, old, advantage, mask)
    extra = 0.7 * (logp - old).abs()[chosen].sum() / tokens
    torch.testing.assert_close(loss, plain + extra)
    torch.testing.assert_close(gradient(loss, logp), gradient(plain + extra, logp))
    assert stats["selected_fraction"] == pytest.approx(count / tokens)


def test_kl_cov_counts_trajectories_with_credit_when_asked():
    logp, old, advantage, mask = batch()
    advantage[1:] = 0.0
    loss, _ = kl_cov(logp, old, advantage, mask, share=1.0, aggregate="valid_token_mean")
    credited = mask[0]
    each = (logp - old)[0].abs() - (logp - old)[0].exp() * advantage[0]
    torch.testing.assert_close(loss, each[credited].mean())


def test_default_share_is_two_in_ten_thousand():
    random = torch.Generator().manual_seed(0)
    logp = -3 * torch.rand(100, 200, generator=random)
    advantage, mask = 4 * torch.randn(100, 200, generator=random), torch.ones(100, 200, dtype=torch.bool)
    for stats in (clip_cov(logp, logp, advantage, mask, 0)[1], kl_cov(logp, logp, advantage, mask)[1]):
        assert stats["selected_fraction"] == pytest.approx(4 / 20_000)


def test_kl_cov_slows_the_growth_of_what_it_selects():
    """The selected action is above average in likelihood and in advantage; its gain is taxed once it has moved."""
    old = torch.log(torch.tensor([[0.9, 0.1, 0.1]], dtype=torch.float64))
    logp = (old + torch.tensor([[0.05, 0.0, 0.0]], dtype=torch.float64)).requires_grad_()
    advantage, mask = torch.tensor([[1.0, -1.0, -1.0]], dtype=torch.float64), torch.ones(1, 3, dtype=torch.bool)
    taxed = gradient(kl_cov(logp, old, advantage, mask)[0], logp)
    free = gradient(surrogate(logp, old, advantage, mask)[0], logp)
    assert (taxed - free).tolist()[0] == pytest.approx([1 / 3, 0.0, 0.0])
