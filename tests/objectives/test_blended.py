import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.objectives.blended import blended_clip
from guerdon.objectives.policy import ppo_clip

quick = settings(derandomize=True, deadline=None, max_examples=40)


def batch(seed, n=4, t=3):
    random = torch.Generator().manual_seed(seed)
    old, now, first, second = torch.randn(4, n, t, generator=random, dtype=torch.float64)
    weight = torch.rand(n, t, generator=random, dtype=torch.float64)
    mask = torch.rand(n, t, generator=random) > 0.3
    return now.requires_grad_(True), old, first, second, weight, mask


def test_by_hand():
    # Ratios 2 and 1/2; clip at 1.2 and 0.8. Credit 1 and -1, and the other way round.
    logp, old = torch.tensor([[2.0, 0.5]]).log(), torch.zeros(1, 2)
    local, between = torch.tensor([[1.0, -1.0]]), torch.tensor([[-1.0, 1.0]])
    weight, mask = torch.tensor([[0.25, 0.75]]), torch.ones(1, 2).bool()
    loss, stats = blended_clip(logp, old, local, between, weight, mask)
    gain = 0.25 * min(2, 1.2) + 0.75 * -2 + 0.75 * -max(0.5, 0.8) + 0.25 * 0.5
    assert loss.item() == pytest.approx(-gain / 2)
    assert stats["local_weight"] == pytest.approx(0.5)
    assert stats["clip_fraction"] == pytest.approx(0.5)  # both of the local credit, none of the other


@quick
@given(st.integers(0, 999), st.sampled_from(["seq_mean", "token_mean"]))
def test_it_lies_between_the_two_losses(seed, aggregate):
    logp, old, first, second, _, mask = batch(seed)
    alone = [ppo_clip(logp, old, credit, mask, aggregate=aggregate)[0] for credit in (first, second)]
    for share in (0.0, 0.3, 1.0):
        weight = torch.full_like(old, share)
        loss, _ = blended_clip(logp, old, first, second, weight, mask, aggregate=aggregate)
        torch.testing.assert_close(loss, share * alone[0] + (1 - share) * alone[1])


def test_where_nothing_is_clipped_credits_can_be_blended_instead():
    logp, old, first, second, weight, mask = batch(3)
    loose = {"clip_low": 1.0, "clip_high": 1e6}
    seen, _ = blended_clip(logp, old, first, second, weight, mask, **loose)
    wanted, _ = ppo_clip(logp, old, weight * first + (1 - weight) * second, mask, **loose)
    torch.testing.assert_close(seen, wanted)
    tight, _ = blended_clip(logp, old, first, second, weight, mask)
    blend, _ = ppo_clip(logp, old, weight * first + (1 - weight) * second, mask)
    assert (tight - blend).abs() > 1e-3


@quick
@given(st.integers(0, 999))
def test_nothing_off_the_mask_is_read(seed):
    logp, old, first, second, weight, mask = batch(seed)
    seen, _ = blended_clip(logp, old, first, second, weight, mask)
    gradient = torch.autograd.grad(seen, logp)[0]
    assert gradient.isfinite().all()
    assert (gradient[~mask] == 0).all()
    spoiled = [x.detach().masked_fill(~mask, 7.0) for x in (logp, old, first, second, weight)]
    torch.testing.assert_close(blended_clip(*spoiled, mask)[0], seen.detach())


def test_a_weight_of_another_shape_is_refused():
    logp, old, first, second, weight, mask = batch(0)
    with pytest.raises(ValueError, match=r"local_weight has shape \(4, 1\)"):
        blended_clip(logp, old, first, second, weight[:, :1], mask)
