import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.monitor.progress import Progress
from guerdon.objectives.divergence import k3
from guerdon.objectives.entropy_band import entropy_band_penalty, fork_mask, spine
from guerdon.objectives.policy import ppo_clip
from guerdon.training.folder import RunFolder
from guerdon.training.loop import train


def batch(seed=0, n=4, t=17):
    generator = torch.Generator().manual_seed(seed)
    logp = (-2 * torch.rand(n, t, generator=generator, dtype=torch.float64)).requires_grad_()
    old = logp.detach() + 0.3 * torch.randn(n, t, generator=generator, dtype=torch.float64)
    ref = logp.detach() + 0.3 * torch.randn(n, t, generator=generator, dtype=torch.float64)
    entropy = (2 * torch.rand(n, t, generator=generator, dtype=torch.float64)).requires_grad_()
    advantage = torch.randn(n, t, generator=generator, dtype=torch.float64)
    mask = torch.rand(n, t, generator=generator) < 0.8
    return logp, old, ref, entropy, advantage, mask


def test_ten_fork_tokens():
    entropy = torch.arange(1.0, 11.0).unsqueeze(0).requires_grad_()
    fork = torch.ones(1, 10).bool()
    band = entropy_band_penalty(entropy, fork)
    low, high = np.quantile(np.arange(1.0, 11.0), [0.1, 0.5])
    wanted = [max(0, h - high) + max(0, low - h) for h in range(1, 11)]
    assert band[0].tolist() == pytest.approx(wanted)
    (slope,) = torch.autograd.grad(band.sum(), entropy)
    assert slope[0].tolist() == [-1, 0, 0, 0, 0, 1, 1, 1, 1, 1]


def test_forks_are_the_highest_fifth_of_each_trajectory():
    entropy = torch.tensor([[3.0, 1, 2, 5, 4, 9, 8, 7, 6, 0], [1.0, 2, math.nan, 9, 9, 9, 9, 9, 9, 9], [1.0] * 10])
    mask = torch.ones(3, 10).bool()
    mask[1, 2:] = False
    forks = fork_mask(entropy, mask)
    assert [row.nonzero().flatten().tolist() for row in forks] == [[5, 6], [1], [0, 1]]
    assert not fork_mask(entropy, torch.zeros_like(mask)).any()
    assert torch.equal(fork_mask(entropy, mask, share=1.0), mask)
    assert fork_mask(torch.zeros(2, 0), torch.zeros(2, 0).bool()).shape == (2, 0)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000), st.floats(0, 0.4), st.floats(0.5, 1))
def test_bands_are_numpys_quantiles_of_each_trajectory(seed, low, high):
    *_, entropy, _, mask = batch(seed)
    band = entropy_band_penalty(entropy, mask, low=low, high=high)
    for row, fork, h in zip(band, mask, entropy.detach(), strict=True):
        if fork.sum() < 3:
            assert not row.any()
            continue
        bounds = np.quantile(h[fork].numpy(), [low, high])
        wanted = (h - bounds[1]).clamp(min=0) + (bounds[0] - h).clamp(min=0)
        torch.testing.assert_close(row.detach(), torch.where(fork, wanted, 0.0))


def test_fewer_than_three_fork_tokens_have_no_band():
    entropy = torch.tensor([[1.0, 9.0, 4.0]], requires_grad=True)
    band = entropy_band_penalty(entropy, torch.tensor([[True, True, False]]))
    assert band.tolist() == [[0, 0, 0]]
    band.sum().backward()
    assert entropy.grad.tolist() == [[0, 0, 0]]


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10_000))
def test_the_loss_is_its_parts_on_fork_tokens_and_nothing_elsewhere(seed):
    logp, old, ref, entropy, advantage, mask = batch(seed)
    loss, stats = spine(logp, old, ref, entropy, advantage, mask, share=0.4, kl_beta=0.3, band_beta=0.7)
    fork = fork_mask(entropy, mask, share=0.4)
    plain = torch.max(-(logp - old).exp() * advantage, -(logp - old).exp().clamp(0.8, 1.2) * advantage)
    parts = plain + 0.3 * k3(logp, ref) + 0.7 * entropy_band_penalty(entropy, fork)
    torch.testing.assert_close(loss, parts[fork].sum() / fork.sum().clamp(min=1))
    slopes = torch.autograd.grad(loss, (logp, entropy), retain_graph=True)
    assert all((slope[~fork] == 0).all() and slope.isfinite().all() for slope in slopes)
    assert stats["fork_entropy"] == pytest.approx(entropy[fork].mean().item())

    order = torch.randperm(len(mask))
    dirty = [
        torch.nn.functional.pad(torch.where(mask, x.detach(), math.nan)[order], (0, 2), value=math.nan)
        for x in (logp, old, ref, entropy, advantage)
    ]
    dirty[0].requires_grad_()
    padded = torch.nn.functional.pad(mask[order], (0, 2))
    again, _ = spine(*dirty, padded, share=0.4, kl_beta=0.3, band_beta=0.7)
    torch.testing.assert_close(again, loss)
    again.backward()
    assert dirty[0].grad[padded].isfinite().all()


def test_all_tokens_without_band_and_anchor_are_ppo():
    logp, old, ref, entropy, advantage, mask = batch()
    plain, _ = ppo_clip(logp, old, advantage, mask)
    ours, _ = spine(logp, old, ref, entropy, advantage, mask, share=1.0, kl_beta=0.0, band_beta=0.0)
    torch.testing.assert_close(ours, plain)


def test_a_recipe_trains_with_it(tmp_path):
    recipe = {
        "name": "spine",
        "runs_dir": str(tmp_path),
        "task": {"name": "reasoning_gym", "dataset": "spell_backward", "config": {"max_word_len": 4}},
        "policy": {"name": "tiny_lm", "width": 16, "layers": 1, "heads": 2},
        "sampling": {"prompts": 4, "group_size": 4, "max_new_tokens": 5},
        "rewards": [{"name": "regex", "pattern": "[a-m].*"}],
        "objective": {"name": "spine", "share": 0.5},
        "training": {"steps": 2},
        "evaluation": {"problems": 4},
        "logging": {"rollouts_every": 0},
    }
    metrics = RunFolder.open(train(recipe, progress=Progress(quiet=True)).run).metrics()
    assert 0.3 < metrics["update/spine/forks"][-1] < 0.6
