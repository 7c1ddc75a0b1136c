import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from guerdon.rewards.likelihood import rto_token_reward
from guerdon.rollouts import Fields, make_rollouts


def fields(seed=0, n=4, t=5):
    g = torch.Generator().manual_seed(seed)
    draw = lambda: -2 * torch.rand(n, t, generator=g, dtype=torch.float64)  # noqa: E731
    mask = torch.rand(n, t, generator=g) < 0.7
    mask[:, 0] = True
    reward = torch.randn(n, generator=g, dtype=torch.float64)
    return {"reward": reward, "anchor_logp": draw(), "ref_logp": draw(), "old_logp": draw(), "mask": mask}


def test_by_hand():
    row = {
        "reward": torch.tensor([30.0]),
        "anchor_logp": torch.tensor([[-1.0, -9.0, -0.5]]),
        "ref_logp": torch.tensor([[-1.5, -0.0, -4.0]]),
        "old_logp": torch.tensor([[-1.0, -5.0, -3.0]]),
        "mask": torch.tensor([[1, 0, 1]]),
    }
    out = rto_token_reward(**row)
    assert out.dense[0].tolist() == pytest.approx([0.05 * 0.5 - 0.01 * 0.5, 0.0, 0.05 - 0.01 * 1.0 + 10.0])
    assert out.reward.tolist() == pytest.approx([10.06])


@given(st.integers(0, 10_000))
def test_unbounded_it_sums_to_the_log_ratios_of_the_answer(seed):
    f = fields(seed)
    out = rto_token_reward(**f, beta_reward=0.0, max_anchor=None)
    liked = ((f["anchor_logp"] - f["ref_logp"]) * f["mask"]).sum(1)
    left = ((f["old_logp"] - f["ref_logp"]) * f["mask"]).sum(1)
    assert torch.allclose(out.reward, 0.05 * liked - 0.01 * left)
    assert torch.equal(out.dense == 0, ~f["mask"])


@given(st.integers(0, 10_000))
def test_the_outcome_stands_at_the_last_action_and_nothing_off_the_mask_is_read(seed):
    f = fields(seed)
    with_, without = rto_token_reward(**f), rto_token_reward(**f, beta_reward=0.0)
    for i in range(4):
        last = int(f["mask"][i].nonzero().max())
        difference = (with_.dense - without.dense)[i]
        assert difference[last].item() == pytest.approx(f["reward"][i].item())
        assert difference.abs().sum().item() == pytest.approx(abs(f["reward"][i].item()))
    dirty = {k: x.masked_fill(~f["mask"], float("nan")) if k.endswith("logp") else x for k, x in f.items()}
    assert torch.equal(rto_token_reward(**dirty).dense, with_.dense)


def test_no_bounds_if_none_are_wanted():
    f = fields() | {"reward": torch.full((4,), 50.0, dtype=torch.float64)}
    out = rto_token_reward(**f, beta_anchor=1.0, beta_ref=0.0, max_anchor=None, max_reward=None)
    liked = ((f["anchor_logp"] - f["ref_logp"]) * f["mask"]).sum(1)
    assert torch.allclose(out.reward, liked + 50)


def test_what_shaping_gives_each_action_is_dense_and_the_rest_of_the_outcome_comes_last():
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]]).bool()
    flags = torch.ones(2, dtype=torch.bool)
    rollouts = make_rollouts(
        torch.zeros(2, dtype=torch.int64),
        torch.arange(2),
        mask,
        torch.zeros(2, 3),
        done=flags,
        truncated=~flags,
        payload={},
    )
    rollouts.reward = torch.tensor([1.0, 2.0])
    assert Fields(rollouts)["dense"].tolist() == [[0, 1, 0], [0, 0, 2]]
    rollouts.dense = torch.tensor([[0.25, 0.5, 9.0], [1.0, 0.0, 0.5]])
    assert Fields(rollouts)["dense"].tolist() == [[0.25, 0.75, 0], [1, 0, 1]]
