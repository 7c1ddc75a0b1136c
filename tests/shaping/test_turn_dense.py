import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.shaping.turn_dense import turn_dense


def episode(turns, actions=2):
    """Turn (N,T) and mask of episodes of so many turns of some actions, each followed by something that was said."""
    rows = [[x for turn in range(n) for x in [*[turn] * actions, -1]] for n in turns]
    turn = torch.full((len(rows), max(map(len, rows))), -1)
    for row, values in enumerate(rows):
        turn[row, : len(values)] = torch.tensor(values)
    return turn, turn >= 0


def test_won_episodes_earn_one_and_lost_ones_their_share():
    raw = torch.tensor([[1.0, 0, 1, 1], [1, 1, 0, 0], [1, 0, 0, 1], [0, 0, 0, 0]])
    turn, mask = episode([4, 4, 4, 4])
    done = torch.tensor([True, True, False, True])
    (dense, reward), stats = turn_dense(raw, turn, mask, done, most=4)
    assert reward.tolist() == pytest.approx([1.0, 0.5, 0.5, 0.0])
    assert stats == {"won": 0.25, "behind": 0.0}
    assert torch.allclose(dense.sum(dim=1), reward)
    assert dense[0].nonzero().flatten().tolist() == [1, 7, 10]  # the last action of turns 0, 2 and 3
    assert dense[0][[1, 7, 10]].tolist() == pytest.approx([1 / 3] * 3)


def test_a_loss_is_divided_too_and_nothing_is_read_behind_the_end():
    raw = torch.tensor([[-1.0, 1, 5], [math.nan, 1, 0]])
    turn, mask = episode([2, 3])
    (dense, reward), stats = turn_dense(raw, turn, mask, torch.tensor([True, False]), most=2)
    assert reward.tolist() == pytest.approx([0.0, 0.5])
    assert dense[0].nonzero().flatten().tolist() == [1, 4]
    assert stats["behind"] == pytest.approx(1 / 3)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_totals_stay_between_zero_and_one(data):
    n = data.draw(st.integers(1, 5))
    turns = data.draw(st.lists(st.integers(1, 5), min_size=n, max_size=n))
    raw = torch.tensor(
        data.draw(st.lists(st.lists(st.sampled_from([0.0, 1.0]), min_size=5, max_size=5), min_size=n, max_size=n))
    )
    done = torch.tensor(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    turn, mask = episode(turns)
    (dense, reward), _ = turn_dense(raw, turn, mask, done, most=5)
    assert (reward >= 0).all()
    assert (reward <= 1 + 1e-6).all()
    assert (dense[~mask] == 0).all()
    order = torch.randperm(n)
    (_, again), _ = turn_dense(raw[order], turn[order], mask[order], done[order], most=5)
    assert torch.equal(again, reward[order])
    last = torch.tensor(turns) - 1
    won = done & (raw[torch.arange(n), last] > 0)
    assert torch.allclose(reward[won], torch.ones(int(won.sum())))
