import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.errors import RecipeError
from guerdon.shaping.length_limit import difficulty_limits, truncation_reward

quick = settings(derandomize=True, deadline=None, max_examples=25)


def test_limits_by_accuracy():
    accuracy = torch.tensor([0.0, 0.49, 0.5, 1.0])
    assert difficulty_limits(accuracy).tolist() == [4000, 4000, 2000, 2000]
    three = difficulty_limits(accuracy, thresholds=(0.25, 0.75), limits=(9, 6, 3))
    assert three.tolist() == [9, 6, 6, 3]
    assert difficulty_limits(accuracy, thresholds=(), limits=(7,)).tolist() == [7] * 4
    for thresholds, limits in (((0.5,), (1,)), ((0.5, 0.5), (1, 2, 3))):
        with pytest.raises(RecipeError, match="one limit more"):
            difficulty_limits(accuracy, thresholds=thresholds, limits=limits)


def test_what_is_cut_or_beyond_the_limit_earns_nothing():
    length, cut = torch.tensor([1, 4000, 4001, 2]), torch.tensor([False, False, False, True])
    kept, stats = truncation_reward(torch.tensor([1.0, 0.6, 1.0, 1.0]), length, cut, torch.zeros(4).long())
    assert kept.tolist() == pytest.approx([1.0, 0.6, 0.0, 0.0])
    assert stats == {"limit": 4000.0, "lost": 0.5}


def test_accuracy_is_that_within_the_largest_limit():
    # Two of three are right, but one of them only beyond 10 actions: 1/3 keeps the wide limit.
    reward, length = torch.tensor([1.0, 1.0, 0.0]), torch.tensor([8, 11, 1])
    options = {"thresholds": (0.5,), "limits": (10, 5)}
    kept, _ = truncation_reward(reward, length, torch.zeros(3).bool(), torch.zeros(3).long(), **options)
    assert kept.tolist() == [1.0, 0.0, 0.0]
    kept, _ = truncation_reward(
        reward, torch.tensor([8, 9, 1]), torch.zeros(3).bool(), torch.zeros(3).long(), **options
    )
    assert kept.tolist() == [0.0, 0.0, 0.0]


rows = st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.integers(1, 20), st.booleans()), max_size=16)


@quick
@given(rows, st.integers(0, 20))
def test_it_is_the_formula_whatever_the_order(rows, seed):
    columns = zip(*rows, strict=True) if rows else ([], [], [], [])
    group, right, length, cut = (torch.tensor(column) for column in columns)
    group, right, length, cut = group.long(), right.double(), length.long(), cut.bool()
    kept, _ = truncation_reward(right, length, cut, group, thresholds=(0.5,), limits=(15, 8))
    for row in range(len(rows)):
        mates = [r for r in rows if r[0] == rows[row][0]]
        accuracy = sum(r[1] and r[2] <= 15 and not r[3] for r in mates) / len(mates)
        limit = 8 if accuracy >= 0.5 else 15
        wanted = rows[row][1] and rows[row][2] <= limit and not rows[row][3]
        assert kept[row].item() == float(wanted)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    again, _ = truncation_reward(
        right[order], length[order], cut[order], group[order], thresholds=(0.5,), limits=(15, 8)
    )
    assert torch.equal(again, kept[order])
