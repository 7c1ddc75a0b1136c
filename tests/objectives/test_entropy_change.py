import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.monitor.progress import Progress
from guerdon.objectives.entropy import categorical_entropy
from guerdon.objectives.entropy_change import change_weights, entropy_change, first_order_entropy_change, steer
from guerdon.objectives.policy import ppo_clip
from guerdon.training.folder import RunFolder
from guerdon.training.loop import train


def batch(seed=0, n=4, t=6):
    generator = torch.Generator().manual_seed(seed)
    logp = (-3 * torch.rand(n, t, generator=generator, dtype=torch.float64)).requires_grad_()
    old = logp.detach() + 0.3 * torch.randn(n, t, generator=generator, dtype=torch.float64)
    entropy = 2 * torch.rand(n, t, generator=generator, dtype=torch.float64)
    advantage = torch.randn(n, t, generator=generator, dtype=torch.float64)
    mask = torch.rand(n, t, generator=generator) < 0.8
    return logp, old, entropy, advantage, mask


def test_change_by_hand():
    logp, old = torch.tensor([[0.5, 0.5, 1.0, 0.5]]).log(), torch.tensor([[0.5, 0.25, 1.0, 0.5]]).log()
    entropy = torch.tensor([[1.0, 1.0, 0.0, math.nan]])
    omega = entropy_change(logp, old, entropy, torch.tensor([[2.0, -1.0, 1.0, 1.0]]), torch.ones(1, 4).bool())
    by_hand = 0.25 * (math.log(0.5) + 1)
    assert omega.tolist()[0] == pytest.approx([4 * by_hand, -4 * by_hand, 0.0, 0.0], abs=1e-6)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10_000))
def test_first_order_is_the_derivative(seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(12, generator=generator, dtype=torch.float64).requires_grad_()
    tokens, advantage = torch.arange(12), torch.randn(12, generator=generator, dtype=torch.float64)
    (slope,) = torch.autograd.grad(categorical_entropy(logits), logits)
    direction = torch.nn.functional.one_hot(tokens, 12) - logits.detach().softmax(-1)
    wanted = 0.5 * 1.5 * advantage * (direction * slope).sum(dim=1)
    expanded = logits.detach().expand(12, 12)
    seen = first_order_entropy_change(expanded, tokens, advantage, torch.full((12,), 1.5), lr=0.5)
    torch.testing.assert_close(seen, wanted)


def test_first_order_knows_impossible_symbols():
    logits = torch.tensor([[0.0, 1.0, -math.inf]])
    assert first_order_entropy_change(logits, torch.tensor([0]), torch.ones(1)).isfinite().all()


def test_weights_by_hand():
    mask = torch.tensor([[True, True, True, False]])
    omega = torch.tensor([[0.0, -0.5, 1.0, 9.0]])
    assert change_weights(omega, mask).tolist()[0] == pytest.approx([1, 0.8**0.5, 0.8, 0])
    assert change_weights(omega, mask, weights="linear").tolist()[0] == pytest.approx([1.2, 1.0, 0.8, 0])
    small = change_weights(omega / 100, mask).tolist()[0]
    assert small == pytest.approx([1, 0.8**0.25, 0.8**0.5, 0])
    assert change_weights(torch.ones(1, 4), mask, weights="linear").tolist()[0] == pytest.approx([1, 1, 1, 0])
    narrow = change_weights(omega, mask, weights="linear", lambda_min=0.95, lambda_max=1.05)
    assert narrow.tolist()[0] == pytest.approx([1.05, 1.0, 0.95, 0])
    for form in ("exponential", "linear"):
        assert change_weights(omega, torch.zeros_like(mask), weights=form).tolist() == [[0, 0, 0, 0]]
        assert change_weights(torch.zeros(0, 4), torch.zeros(0, 4).bool(), weights=form).shape == (0, 4)


@pytest.mark.parametrize("form", ["exponential", "linear"])
@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10_000))
def test_the_loss_is_weighed_ppo_whatever_rows_and_padding_hold(form, seed):
    logp, old, entropy, advantage, mask = batch(seed)
    weight = change_weights(entropy_change(logp, old, entropy, advantage, mask), mask, weights=form)
    ratio, a = (logp - old).exp(), advantage
    loss = torch.max(-ratio * a, -ratio.clamp(0.8, 1.2) * a)
    loss = torch.where(a < 0, torch.min(loss, -3 * a), loss) * weight
    wanted = loss[mask].sum() / mask.sum().clamp(min=1)
    ours, stats = steer(logp, old, entropy, advantage, mask, weights=form)
    torch.testing.assert_close(ours, wanted)
    assert stats["weight"] == pytest.approx(float(weight.sum() / mask.sum().clamp(min=1)))
    order = torch.randperm(len(mask))
    dirty = [
        torch.nn.functional.pad(torch.where(mask, x.detach(), math.nan)[order], (0, 2), value=math.nan)
        for x in (logp, old, entropy, advantage)
    ]
    dirty[0].requires_grad_()
    padded = torch.nn.functional.pad(mask[order], (0, 2))
    again, _ = steer(*dirty, padded, weights=form)
    torch.testing.assert_close(again, wanted)
    again.backward()
    assert dirty[0].grad[padded].isfinite().all()


def test_blame_counts_three_times_at_most():
    logp = torch.tensor([[0.0, 0.0]], requires_grad=True)
    old, entropy, mask = torch.tensor([[-2.0, 0.0]]), torch.zeros(1, 2), torch.ones(1, 2).bool()
    loss, _ = steer(logp, old, entropy, -torch.ones(1, 2), mask)
    assert loss.item() == pytest.approx((3 + 1) / 2)
    assert steer(logp, old, entropy, -torch.ones(1, 2), mask, dual_clip=None)[0].item() > 4


def test_a_least_weight_of_one_is_ppo():
    logp, old, entropy, advantage, mask = batch()
    plain, _ = ppo_clip(logp, old, advantage, mask, dual_clip=3.0)
    torch.testing.assert_close(steer(logp, old, entropy, advantage, mask, lambda_min=1.0)[0], plain)


def test_a_recipe_trains_with_it(tmp_path):
    recipe = {
        "name": "steer",
        "runs_dir": str(tmp_path),
        "task": {"name": "reasoning_gym", "dataset": "spell_backward", "config": {"max_word_len": 4}},
        "policy": {"name": "tiny_lm", "width": 16, "layers": 1, "heads": 2},
        "sampling": {"prompts": 4, "group_size": 4, "max_new_tokens": 4},
        "rewards": [{"name": "regex", "pattern": "[a-m].*"}],
        "objective": "steer",
        "training": {"steps": 2, "epochs": 2, "minibatches": 2},
        "evaluation": {"problems": 4},
        "logging": {"rollouts_every": 0},
    }
    result = train(recipe, progress=Progress(quiet=True))
    assert 0.7 < RunFolder.open(result.run).metrics()["update/steer/weight"][-1] <= 1.0
