import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.errors import RecipeError
from guerdon.monitor.progress import Progress
from guerdon.objectives.low_probability import filtered_proxy_logprob, lp_reg
from guerdon.objectives.policy import ppo_clip
from guerdon.training.folder import RunFolder
from guerdon.training.loop import train

SPARK = torch.tensor([0.55, 0.05] + [0.4 / 58] * 58, dtype=torch.float64)


def batch(seed=0, n=5, t=8):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(n, t, 12, generator=generator, dtype=torch.float64)
    tokens = torch.randint(12, (n, t), generator=generator)
    old = logits.log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    logp = (old + 0.3 * torch.randn(n, t, generator=generator, dtype=torch.float64)).requires_grad_()
    advantage = torch.randn(n, t, generator=generator, dtype=torch.float64)
    mask = torch.rand(n, t, generator=generator) < 0.8
    return logp, old, advantage, mask, {"proxy_logp": filtered_proxy_logprob(logits, tokens, kappa=0.2)}


def by_hand(logp, old, advantage, mask, payload, beta, share, low, high):
    """One action after the other, in plain Python."""
    lp, q, a = (x.detach().tolist() for x in (logp, payload["proxy_logp"], advantage))
    places = [(i, j) for i in range(len(lp)) for j in range(len(lp[0])) if mask[i, j]]
    negative = sorted((lp[i][j], i, j) for i, j in places if a[i][j] < 0)
    count = int(len(negative) * share)
    chosen = {(i, j) for _, i, j in negative[:count]} if count > 1 else set()
    total = 0.0
    for i, j in places:
        ratio = math.exp(lp[i][j] - old[i, j].item())
        if (i, j) in chosen and lp[i][j] < q[i][j]:
            x = q[i][j] - lp[i][j]
            total += -a[i][j] * ratio + beta * min(10.0, math.exp(x) - x - 1)
        else:
            total += -min(ratio * a[i][j], min(max(ratio, 1 - low), 1 + high) * a[i][j])
    return total / len(places)


def test_the_proxy_of_a_spark_beside_a_tail():
    proxy = filtered_proxy_logprob(SPARK.log().expand(3, -1), torch.arange(3))
    assert proxy[:2].exp().tolist() == pytest.approx([0.55 / 0.6, 0.05 / 0.6])
    assert proxy[2] < -9000
    fixed = filtered_proxy_logprob(SPARK.log(), torch.tensor(1), threshold=0.04)
    assert fixed.exp().item() == pytest.approx(0.05 / 0.6)
    assert filtered_proxy_logprob(SPARK.log(), torch.tensor(0), threshold=0.9).item() == pytest.approx(0.0)
    whole = filtered_proxy_logprob(SPARK.log().expand(60, -1), torch.arange(60), kappa=0.0)
    torch.testing.assert_close(whole, SPARK.log())
    with pytest.raises(ValueError, match=r"kappa is 2\.0"):
        filtered_proxy_logprob(SPARK.log(), torch.tensor(0), kappa=2.0)


def test_symbols_that_were_ruled_out_stay_so():
    logits = torch.tensor([0.0, 0.0, -math.inf])
    proxy = filtered_proxy_logprob(logits.expand(3, -1), torch.arange(3), kappa=0.0)
    assert proxy[:2].exp().tolist() == [0.5, 0.5]
    assert not proxy.isnan().any()


def test_gradient_of_a_spark():
    tokens, mask = torch.arange(3).unsqueeze(1), torch.ones(3, 1).bool()
    logp = SPARK.log()[tokens].requires_grad_()
    payload = {"proxy_logp": filtered_proxy_logprob(SPARK.log().expand(3, 1, -1), tokens)}
    negative = -torch.ones(3, 1, dtype=torch.float64)
    loss, stats = lp_reg(logp, logp.detach(), negative, mask, payload, share_neg=1.0)
    slope = 3 * torch.autograd.grad(loss, logp)[0].squeeze(1) - 1  # rho has slope 1 there
    assert slope.tolist() == pytest.approx([1 - 1 / 0.6, -0.667, 0.0], abs=4e-4)
    assert stats["penalty"] == pytest.approx(0.156, abs=5e-4)
    assert stats["selected_fraction"] == pytest.approx(2 / 3)
    tail = torch.tensor([[True], [True], [False]])
    _, stats = lp_reg(logp, logp.detach(), negative, tail, payload, share_neg=0.5)  # a share of one is none
    assert stats["selected_fraction"] == 0
    _, stats = lp_reg(logp, logp.detach(), -negative, mask, payload, share_neg=1.0)
    assert stats["selected_fraction"] == 0
    assert lp_reg(logp, logp.detach(), -negative, mask, payload, share_pos=1.0)[1]["selected_fraction"] > 0.6


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.1, 0.5, 1.0]), st.sampled_from([0.0, 1.0, 2.5]))
def test_it_is_the_formula_whatever_the_rows_and_the_padding_hold(seed, share, beta):
    logp, old, advantage, mask, payload = batch(seed)
    options = {"beta": beta, "share_neg": share, "clip_low": 0.2, "clip_high": 0.28}
    loss, _ = lp_reg(logp, old, advantage, mask, payload, **options)
    assert loss.item() == pytest.approx(by_hand(logp, old, advantage, mask, payload, beta, share, 0.2, 0.28))
    order = torch.randperm(len(mask))
    dirty = [
        torch.nn.functional.pad(torch.where(mask, x.detach(), math.nan)[order], (0, 2), value=math.nan)
        for x in (logp, old, advantage, payload["proxy_logp"])
    ]
    dirty[0].requires_grad_()
    padded = torch.nn.functional.pad(mask[order], (0, 2))
    again, _ = lp_reg(*dirty[:3], padded, {"proxy_logp": dirty[3]}, **options)
    torch.testing.assert_close(loss, again)
    again.backward()
    assert dirty[0].grad[padded].isfinite().all()


def test_without_anything_selected_it_is_ppo():
    logp, old, advantage, mask, payload = batch()
    plain, _ = ppo_clip(logp, old, advantage, mask, clip_low=0.2, clip_high=0.28)
    ours, _ = lp_reg(logp, old, advantage, mask, payload, share_neg=0.0, clip_low=0.2, clip_high=0.28)
    torch.testing.assert_close(ours, plain)
    nobody = torch.zeros_like(mask)
    assert lp_reg(logp, old, advantage, nobody, payload)[0].item() == 0.0


def test_without_a_proxy_the_remedy_is_named():
    logp, old, advantage, mask, _ = batch()
    with pytest.raises(RecipeError, match="lp_reg_proxy"):
        lp_reg(logp, old, advantage, mask, {})


def test_a_recipe_trains_with_it(tmp_path):
    recipe = {
        "name": "lp",
        "runs_dir": str(tmp_path),
        "task": {"name": "reasoning_gym", "dataset": "spell_backward", "config": {"max_word_len": 4}},
        "policy": {"name": "tiny_lm", "width": 16, "layers": 1, "heads": 2},
        "sampling": {"prompts": 4, "group_size": 4, "max_new_tokens": 4, "sources": ["lp_reg_proxy"]},
        "rewards": [{"name": "regex", "pattern": "[a-m].*"}],
        "objective": {"name": "lp_reg", "share_neg": 0.5},
        "training": {"steps": 2, "epochs": 2, "minibatches": 2},
        "evaluation": {"problems": 4},
        "logging": {"rollouts_every": 0},
    }
    result = train(recipe, progress=Progress(quiet=True))
    assert "update/lp_reg/selected_fraction" in RunFolder.open(result.run).metrics()
