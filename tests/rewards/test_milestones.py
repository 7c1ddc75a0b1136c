import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.rewards.milestones import doubly_robust_advantage, milestones_met, potential_reward, progress_labels

quick = settings(derandomize=True, deadline=None, max_examples=40)


def batch(n, m, seed):
    random = torch.Generator().manual_seed(seed)
    exists = torch.arange(m) < torch.randint(1, m + 1, (n, 1), generator=random)
    draw = torch.rand(4, n, m, generator=random, dtype=torch.float64)
    return draw, exists, torch.rand(n, generator=random) < 0.5, random


def test_milestones_count_in_order_and_for_good():
    reached = torch.tensor([[[0, 0], [0, 1], [1, 0], [0, 0]]]).bool()
    # The second was met before the first, and counts with it; neither is lost again.
    assert milestones_met(reached).tolist() == [[0, 0, 2, 2]]


def test_labels_by_hand():
    reached = (torch.arange(8).unsqueeze(1) >= torch.tensor([2, 6, 99, 99])).unsqueeze(0)
    exists = torch.ones(1, 8, dtype=torch.bool)
    assert progress_labels(reached, exists).tolist() == [[0, 0.125, 0.25, 0.3125, 0.375, 0.4375, 0.5, 0.5]]
    # What lies behind the end is not read: the second milestone is never met then.
    exists[0, 6:] = False
    assert progress_labels(reached, exists).tolist() == [[0, 0.125, 0.25, 0.25, 0.25, 0.25, 0, 0]]
    both = (torch.arange(3).unsqueeze(1) >= torch.tensor([2, 2])).unsqueeze(0)
    assert progress_labels(both, torch.ones(1, 3, dtype=torch.bool)).tolist() == [[0, 0.25, 1]]


@quick
@given(n=st.integers(1, 4), m=st.integers(1, 8), k=st.integers(1, 4), seed=st.integers(0, 999))
def test_labels_against_a_loop(n, m, k, seed):
    _, exists, _, random = batch(n, m, seed)
    reached = torch.rand(n, m, k, generator=random) < 0.2
    seen = progress_labels(reached, exists)
    for row in range(n):
        length = int(exists[row].sum())
        met, times = 0, [0]
        for t in range(length):
            while met < k and reached[row, : t + 1, met].any():
                met += 1
                times.append(t)
        for t in range(length):
            count = sum(time <= t for time in times[1:])
            y = count / k
            if count + 1 < len(times):
                y += (t - times[count]) / (times[count + 1] - times[count]) / k
            assert seen[row, t].item() == pytest.approx(y)
        assert not seen[row, length:].any()


@quick
@given(n=st.integers(1, 4), m=st.integers(1, 8), seed=st.integers(0, 999), gamma=st.sampled_from([0.5, 0.9, 1.0]))
def test_shaping_telescopes(n, m, seed, gamma):
    (p, *_), exists, done, _ = batch(n, m, seed)
    garbage = p.masked_fill(~exists, float("nan"))
    last = torch.full((n,), 0.7, dtype=torch.float64)
    paid = potential_reward(garbage, exists, done, last, gamma=gamma, eta=2.0)
    assert bool(paid.isfinite().all())
    total = (paid * gamma ** torch.arange(m).double()).sum(dim=1)
    end = torch.where(done, 0.0, last) * gamma ** exists.sum(dim=1).double()
    torch.testing.assert_close(total, 2 * (end - p[:, 0]))
    assert bool((potential_reward(p, exists, done, eta=0.0) == 0).all())


def test_shaping_leaves_the_best_policy_alone_and_ends_by_hand():
    p, exists = torch.tensor([[0.25, 0.5], [0.25, 0.5]]), torch.ones(2, 2, dtype=torch.bool)
    done = torch.tensor([True, False])
    assert potential_reward(p, exists, done).tolist() == [[0.25, -0.5], [0.25, 0.0]]
    assert potential_reward(p, exists, done, terminal=1.0).tolist() == [[0.25, 0.5], [0.25, 0.0]]


def test_no_milestone_leaves_the_sparse_advantage():
    (r, v, *_), exists, done, _ = batch(3, 5, 0)
    flat = potential_reward(progress_labels(torch.zeros(3, 5, 2).bool(), exists), exists, done)
    torch.testing.assert_close(
        doubly_robust_advantage(r, v, exists, done, shaping=flat), doubly_robust_advantage(r, v, exists, done)
    )


def test_advantage_by_hand():
    reward, values = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.4, 0.6]])
    exists, done = torch.ones(1, 2, dtype=torch.bool), torch.tensor([True])
    seen = doubly_robust_advantage(reward, values, exists, done, gamma=0.5)
    # One step: 0.3 - 0.4 and 1 - 0.6; return: 0.5 - 0.4 and 1 - 0.6.
    assert seen[0].tolist() == pytest.approx([0.0, 0.4])
    shaped = doubly_robust_advantage(reward, values, exists, done, shaping=torch.tensor([[0.2, 0.2]]), gamma=0.5)
    assert shaped[0].tolist() == pytest.approx([0.1, 0.5])
    cut = doubly_robust_advantage(reward, values, exists, ~done, torch.tensor([0.8]), gamma=0.5)
    assert cut[0].tolist() == pytest.approx([0.0, 0.6])


@quick
@given(n=st.integers(1, 4), m=st.integers(1, 6), seed=st.integers(0, 999))
def test_advantage_ignores_padding_and_order(n, m, seed):
    (r, v, f, _), exists, done, _ = batch(n, m, seed)
    seen = doubly_robust_advantage(r, v, exists, done, shaping=f)
    assert bool((seen[~exists] == 0).all())
    nan = float("nan")
    dirty = [x.masked_fill(~exists, nan) for x in (r, v, f)]
    torch.testing.assert_close(doubly_robust_advantage(dirty[0], dirty[1], exists, done, shaping=dirty[2]), seen)
    order = torch.arange(n - 1, -1, -1)
    torch.testing.assert_close(
        doubly_robust_advantage(r[order], v[order], exists[order], done[order], shaping=f[order]), seen[order]
    )
