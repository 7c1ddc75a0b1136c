import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.inference.best_of_n import best_of_n, knockout


def by_worth(worth):
    def compare(first, second):
        return torch.stack([worth[first], worth[second]], dim=1)

    return compare


def test_the_best_of_each_group_is_found():
    score = torch.tensor([1.0, 3.0, 2.0, 5.0, 5.0, -1.0])
    group = torch.tensor([7, 7, 2, 2, 2, 9])
    assert best_of_n(score, group).tolist() == [3, 1, 5]
    assert best_of_n(torch.tensor([math.nan, 1.0, math.nan, math.nan]), torch.tensor([0, 0, 1, 1])).tolist() == [1, 2]
    assert best_of_n(torch.tensor([math.inf, 1.0, -math.inf]), torch.tensor([0, 0, 1])).tolist() == [0, 2]
    assert best_of_n(torch.tensor([]), torch.tensor([], dtype=torch.int64)).tolist() == []


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), min_size=1, max_size=14), st.integers(0, 5))
def test_a_knockout_by_worth_finds_a_best_sample(samples, seed):
    group = torch.tensor([g for g, _ in samples])
    worth = torch.tensor([float(w) for _, w in samples])
    keys = group.unique()
    result = knockout(by_worth(worth), group, seed=seed)
    assert torch.equal(group[result.rows], keys)
    assert torch.equal(worth[result.rows], worth[best_of_n(worth, group)])
    assert result.comparisons == len(group) - len(keys)


def test_rounds_and_byes():
    met = []

    def compare(first, second):
        met.append(list(zip(first.tolist(), second.tolist(), strict=True)))
        return torch.stack([-first, -second], dim=1).float()

    assert knockout(compare, torch.zeros(5, dtype=torch.int64)).rows.tolist() == [0]
    assert met == [[(0, 1), (2, 3)], [(4, 0)], [(2, 0)]]


def test_a_draw_goes_to_the_first_and_a_group_of_one_needs_no_judge():
    assert knockout(lambda a, b: torch.ones(len(a), 2), torch.tensor([4, 4, 1])).rows.tolist() == [2, 0]
    assert knockout(lambda a, b: torch.ones(len(a), 2), torch.tensor([], dtype=torch.int64)).rows.tolist() == []


def test_a_judge_of_eighty_percent_finds_the_good_one_of_four_by_its_square():
    trials, generator = 20_000, torch.Generator().manual_seed(0)
    group = torch.arange(trials).repeat_interleave(4)
    good = (torch.arange(4 * trials) % 4) == torch.randint(4, (trials,), generator=generator).repeat_interleave(4)

    def compare(first, second):
        right = torch.rand(len(first), generator=generator) < 0.8
        better = torch.where(good[first] == good[second], right, good[first] == right)
        return torch.stack([better, ~better], dim=1).float()

    share = float(good[knockout(compare, group).rows].float().mean())
    assert share == pytest.approx(0.64, abs=0.014)


def test_the_seed_shuffles_the_bracket():
    starts = set()
    for seed in range(20):
        met = []

        def compare(first, second, met=met):
            met.append((first.tolist(), second.tolist()))
            return torch.ones(len(first), 2)

        knockout(compare, torch.zeros(4, dtype=torch.int64), seed=seed)
        starts.add(str(met[0]))
    assert len(starts) > 5
