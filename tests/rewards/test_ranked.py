import math

import pytest
import torch
from batches import batch_of
from hypothesis import given
from hypothesis import strategies as st

from guerdon import registry
from guerdon.rewards.base import Reward, score
from guerdon.rewards.ranked import rank_discount, rank_discounts


def test_weights_of_four_ranks():
    total = 1 + 1 / math.log2(3) + 0.5 + 1 / math.log2(5)
    assert total == pytest.approx(2.561606, abs=1e-6)
    assert rank_discounts(4) == pytest.approx([1 / total, 0.630930 / total, 0.5 / total, 0.430677 / total], abs=1e-6)
    assert rank_discounts(4) == pytest.approx([0.390380, 0.246302, 0.195190, 0.168128], abs=1e-5)


@given(st.integers(1, 60))
def test_weights_add_up_to_one_and_fall_with_the_rank(size):
    weights = rank_discounts(size)
    assert sum(weights) == pytest.approx(1)
    assert all(high > low > 0 for high, low in zip(weights, [*weights[1:], 1e-9], strict=True))


def values(items, wanted):
    return [score.value for score in rank_discount(items, [wanted] * len(items))]


def test_wrong_items_are_punished_by_their_rank():
    weights = rank_discounts(4)
    assert values(["a", "b", "c", "d"], "c") == [-weights[0], -weights[1], 0.0, -weights[3]]
    assert [s.detail["rank"] for s in rank_discount(["a", "b", "c", "d"], ["c"] * 4)] == [0, 1, 2, 3]


def test_a_group_without_the_wanted_item_is_not_ranked():
    assert values(["a", "b", "c", "d"], "e") == [0.0] * 4


def test_an_item_that_comes_twice_is_right_twice():
    weights = rank_discounts(3)
    assert values(["b", "a", "B."], "b") == [0.0, -weights[1], 0.0]


def test_the_order_of_a_group_is_that_of_the_batch():
    """Two groups whose rows alternate; with ``exact`` the wanted item has 1 and the others what they lose."""
    group = torch.tensor([7, 3, 7, 3, 7])
    rollouts = batch_of(["x", "k", "y", "l", "z"], group, answer=["y", "l", "y", "l", "y"])
    names = ("exact", "rank_discount")
    rewards = [Reward(name, registry.get("reward", name), {}) for name in names]
    scored, faults = score(rollouts, rewards)
    three, two = rank_discounts(3), rank_discounts(2)
    assert not faults
    total = scored.rewards["exact"] + scored.rewards["rank_discount"]
    assert total.tolist() == pytest.approx([-three[0], -two[0], 1.0, 1.0, -three[2]])
