import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.credit import gae
from guerdon.registry import get

quick = settings(derandomize=True, deadline=None, max_examples=60)
NAN = float("nan")


def batch(seed, n=4, t=7):
    random = torch.Generator().manual_seed(seed)
    dense, values = torch.randn(2, n, t, generator=random, dtype=torch.float64)
    mask = torch.rand(n, t, generator=random) > 0.35
    bootstrap = torch.randn(n, generator=random, dtype=torch.float64)
    done = torch.rand(n, generator=random) > 0.5
    return dense, values, mask, bootstrap, done


def by_definition(rewards, values, last, gamma, lam):
    """Sum over l of (gamma lam)^l delta_{k+l}, of one trajectory without holes."""
    following = [*values[1:], last]
    delta = [r + gamma * nxt - v for r, nxt, v in zip(rewards, following, values, strict=True)]
    return [sum((gamma * lam) ** (j - k) * delta[j] for j in range(k, len(delta))) for k in range(len(delta))]


@quick
@given(seed=st.integers(0, 10**6), gamma=st.floats(0, 1), lam=st.floats(0, 1))
def test_agrees_with_the_definition_on_the_actions_alone(seed, gamma, lam):
    dense, values, mask, bootstrap, done = batch(seed)
    out = gae(dense, values, mask, bootstrap, done, gamma=gamma, lam=lam, whiten=False)
    for i in range(len(mask)):
        acted = mask[i]
        last = 0.0 if done[i] else bootstrap[i].item()
        expected = by_definition(dense[i][acted].tolist(), values[i][acted].tolist(), last, gamma, lam)
        assert out.advantage[i][acted].tolist() == pytest.approx(expected, abs=1e-9)
    torch.testing.assert_close(out.returns, (out.advantage + values) * mask)
    assert (out.advantage[~mask] == 0).all()
    assert (out.returns[~mask] == 0).all()


def test_by_hand_across_a_hole():
    mask = torch.tensor([[True, False, True, False]])
    dense, values = torch.tensor([[1.0, NAN, 2.0, NAN]]), torch.tensor([[0.5, NAN, 1.5, NAN]])
    out = gae(dense, values, mask, torch.tensor([4.0]), torch.tensor([False]), gamma=0.5, lam=0.5, whiten=False)
    # delta_2 = 2 + 0.5 * 4 - 1.5 = 2.5; delta_1 = 1 + 0.5 * 1.5 - 0.5 = 1.25; A_1 = 1.25 + 0.25 * 2.5
    assert out.advantage.tolist() == [[1.875, 0, 2.5, 0]]
    assert out.returns.tolist() == [[2.375, 0, 4, 0]]


def test_lam_one_gives_monte_carlo_returns_and_lam_zero_the_td_error():
    dense, values, mask, bootstrap, _ = batch(5)
    mask[:] = True
    running = torch.zeros(4, dtype=torch.bool)
    returns = gae(dense, values, mask, bootstrap, running, gamma=1.0, lam=1.0, whiten=False).returns
    torch.testing.assert_close(returns, dense.flip(1).cumsum(1).flip(1) + bootstrap.unsqueeze(1))
    td = gae(dense, values, mask, bootstrap, running, gamma=0.9, lam=0.0, whiten=False).advantage
    torch.testing.assert_close(td[:, :-1], dense[:, :-1] + 0.9 * values[:, 1:] - values[:, :-1])


def test_bootstrap_counts_only_where_the_episode_was_cut():
    dense, values, mask, _, _ = batch(8, n=1)
    cut, ended = torch.tensor([False]), torch.tensor([True])
    zero, garbage = torch.zeros(1, dtype=torch.float64), torch.tensor([NAN], dtype=torch.float64)
    reference = gae(dense, values, mask, zero, cut, whiten=False).returns
    assert torch.equal(gae(dense, values, mask, garbage, ended, whiten=False).returns, reference)
    assert not torch.equal(gae(dense, values, mask, zero + 1, cut, whiten=False).returns, reference)


@quick
@given(st.integers(0, 10**6))
def test_invariants(seed):
    dense, values, mask, bootstrap, done = batch(seed)
    out = gae(dense, values, mask, bootstrap, done)
    spoiled = gae(dense.masked_fill(~mask, NAN), values.masked_fill(~mask, math.inf), mask, bootstrap, done)
    assert torch.equal(spoiled.advantage, out.advantage)
    assert torch.equal(spoiled.returns, out.returns)
    order = torch.tensor([2, 0, 3, 1])
    moved = gae(dense[order], values[order], mask[order], bootstrap[order], done[order])
    torch.testing.assert_close(moved.advantage, out.advantage[order])
    torch.testing.assert_close(moved.returns, out.returns[order])
    pad = torch.full((4, 2), NAN, dtype=torch.float64)
    wide = [torch.cat([pad, x, pad], dim=1) for x in (dense, values)]
    wide_mask = torch.cat([pad == 0, mask, pad == 0], dim=1)
    padded = gae(wide[0], wide[1], wide_mask, bootstrap, done)
    torch.testing.assert_close(padded.advantage[:, 2:-2], out.advantage)
    torch.testing.assert_close(padded.returns[:, 2:-2], out.returns)


def test_whitening_is_over_actions_and_leaves_the_returns_alone():
    data = batch(11)
    mask = data[2]
    plain, white = gae(*data, whiten=False), gae(*data)
    assert torch.equal(plain.returns, white.returns)
    actions = white.advantage[mask]
    assert actions.mean().item() == pytest.approx(0, abs=1e-9)
    assert actions.std().item() == pytest.approx(1, abs=1e-6)
    raw = plain.advantage[mask]
    torch.testing.assert_close(actions, (raw - raw.mean()) / (raw.std() + 1e-8))


def test_defaults():
    data = batch(2)
    assert torch.equal(gae(*data).advantage, gae(*data, gamma=0.99, lam=0.95, whiten=True).advantage)


def test_degenerate_batches():
    nothing = gae(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(2), torch.zeros(2))
    assert (nothing.advantage == 0).all()
    assert (nothing.returns == 0).all()
    empty = gae(torch.zeros(2, 0), torch.zeros(2, 0), torch.zeros(2, 0), torch.ones(2), torch.zeros(2))
    assert empty.advantage.shape == (2, 0)


def test_registry_hands_out_both_fields():
    names = ("dense", "values", "mask", "bootstrap", "done")
    outcome = get("credit", "gae").bind({"gamma": 1.0})(dict(zip(names, batch(1), strict=True)))
    assert set(outcome.fields) == {"advantage", "returns"}
