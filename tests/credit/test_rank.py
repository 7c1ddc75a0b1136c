import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.credit import grpo
from guerdon.credit.rank import group_rank, rank_to_advantage

quick = settings(derandomize=True, deadline=None, max_examples=50)
ROWS = st.lists(st.tuples(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), st.integers(-1, 2)), min_size=1, max_size=14)


def columns(rows):
    reward, group = (torch.tensor(column) for column in zip(*rows, strict=True))
    return reward.double(), group


def test_ranks_by_hand():
    x = torch.tensor([3.0, 1.0, 3.0, 2.0, 9.0, 7.0])
    group = torch.tensor([5, 5, 5, 5, 2, 2])
    assert group_rank(x, group).tolist() == [0.5, 3.0, 0.5, 2.0, 0.0, 1.0]
    assert group_rank(x, group, ties="min").tolist() == [0.0, 3.0, 0.0, 2.0, 0.0, 1.0]
    assert group_rank(x[:0], group[:0]).tolist() == []


@quick
@given(ROWS, st.sampled_from(["mean", "min"]))
def test_ranks_count_those_above(rows, ties):
    x, group = columns(rows)
    same = group.unsqueeze(1) == group
    above = (same & (x > x.unsqueeze(1))).sum(dim=1)
    level = (same & (x == x.unsqueeze(1))).sum(dim=1)
    wanted = above + ((level - 1) / 2 if ties == "mean" else 0)
    assert group_rank(x, group, ties=ties).tolist() == wanted.tolist()


def test_advantage_by_hand():
    reward = torch.tensor([10.0, 0.3, 0.2, -5.0], dtype=torch.float64)
    seen = rank_to_advantage(reward, torch.zeros(4).long(), torch.ones(4, 1).bool())
    place = torch.tensor([1, 2 / 3, 1 / 3, 0], dtype=torch.float64)
    torch.testing.assert_close(seen[:, 0], (place - 0.5) / (place.std() + 1e-6))


@quick
@given(ROWS, st.randoms(use_true_random=False))
def test_only_the_order_inside_groups_matters(rows, random):
    reward, group = columns(rows)
    mask = torch.tensor([[True, True, False]] * len(rows))
    seen = rank_to_advantage(reward, group, mask)
    assert (seen[:, 2] == 0).all()
    torch.testing.assert_close(rank_to_advantage(reward.exp() * 7 - 100, group, mask), seen)
    torch.testing.assert_close(rank_to_advantage(reward + 10.0 * group, group, mask), seen)
    order = torch.tensor(random.sample(range(len(rows)), len(rows)))
    torch.testing.assert_close(rank_to_advantage(reward[order], group[order], mask[order]), seen[order])
    for key in group.unique():
        own = group == key
        assert seen[own, 0].sum().item() == pytest.approx(0, abs=1e-9)
        if own.sum() == 1 or (reward[own] == reward[own][0]).all():
            assert (seen[own] == 0).all()


def test_places_are_left_as_they_are():
    place = 1 - torch.randperm(16, generator=torch.Generator().manual_seed(0)).double() / 15
    group, mask = torch.zeros(16).long(), torch.ones(16, 1).bool()
    torch.testing.assert_close(rank_to_advantage(place, group, mask), grpo(place, group, mask, eps=1e-6))
