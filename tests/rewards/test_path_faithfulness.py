import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.errors import RecipeError
from guerdon.rewards.path_faithfulness import (
    faithfulness_reward,
    outcome_or_process,
    path_faithfulness,
    path_faithfulness_reward,
)

quick = settings(derandomize=True, deadline=None, max_examples=25)
NAMES = ("outcome", "process", "form")
OPTIONS = {"outcome": "outcome", "process": "process", "form": "form"}


def test_the_best_end_by_hand():
    given_, masked = torch.tensor([[[-1.0, -0.5], [-2.0, -9.0]]]), torch.tensor([[[-4.0, -2.0], [-2.0, -3.0]]])
    length = torch.tensor([6, 1])
    assert path_faithfulness(given_, masked, length)[0].tolist() == [1.5, 0.0]
    assert path_faithfulness(given_, masked, length, normalise=False)[0].tolist() == [3.0, 0.0]
    valid = torch.tensor([[[True, False], [False, False]]])
    dirty = given_.masked_fill(~valid, math.nan)
    assert path_faithfulness(dirty, masked, length.expand(1, 2), valid)[0].tolist() == [0.5, 0.0]
    assert path_faithfulness(given_[..., :0], masked[..., :0], length[:0]).tolist() == [[0.0, 0.0]]


def test_later_parts_weigh_more():
    weight = [1 / (1 + math.exp(-10 * (i / 4 - 0.5))) for i in range(1, 5)]
    row = torch.tensor([[0.0, 1.0, 0.0, 2.0]], dtype=torch.float64)
    wanted = (weight[1] + 2 * weight[3]) / sum(weight)
    assert float(faithfulness_reward(row, torch.tensor([4]))) == pytest.approx(wanted)
    assert float(faithfulness_reward(row, torch.tensor([4]), slope=0.0)) == pytest.approx(0.75)


@quick
@given(st.lists(st.lists(st.floats(-3, 3), max_size=5), min_size=1, max_size=6), st.integers(0, 9))
def test_means_of_ragged_rows(rows, seed):
    count = torch.tensor([len(row) for row in rows])
    x = torch.full((len(rows), 6), math.nan, dtype=torch.float64)
    for place, row in enumerate(rows):
        x[place, : len(row)] = torch.tensor(row, dtype=torch.float64)
    out = faithfulness_reward(x, count)
    for row, value in zip(rows, out.tolist(), strict=True):
        assert (min(row) - 1e-9 <= value <= max(row) + 1e-9) if row else value == 0
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(faithfulness_reward(x[order], count[order]), out[order])


def test_the_reward_reads_what_the_source_wrote():
    score = path_faithfulness_reward({"path_faithfulness": [0.0, 1.0]}, slope=0.0)
    assert score.value == pytest.approx(0.5)
    assert score.detail == {"parts": [0.0, 1.0]}
    assert not path_faithfulness_reward({}).valid


def columns(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def test_the_hierarchy():
    rows = columns([0, 0.3, 1], [1, 0.2, 1], [0, 0.5, 1], [0, math.nan, 1], [1, 0.9, 0])
    group = torch.tensor([7, 7, 3, 3, 3])
    value, stats = outcome_or_process(rows, NAMES, group, 0, **OPTIONS)
    # A success of bad form is none.
    assert value.tolist() == [0.0, 1.0, 0.5, 0.0, -1.0]
    assert stats == pytest.approx({"process": 0.4, "penalised": 0.2})
    value, stats = outcome_or_process(rows, NAMES, group, 0, begin=1, **OPTIONS)
    assert value.tolist() == [0.0, 0.0, 0.0, 0.0, -1.0]
    assert stats["process"] == 0
    value, _ = outcome_or_process(rows, NAMES, group, 0, outcome="outcome", process="process")
    assert value.tolist() == [0.0, 1.0, 0.0, 0.0, 1.0]


def test_a_name_that_is_none():
    with pytest.raises(RecipeError, match="no reward is called 'out'"):
        outcome_or_process(columns([0, 0, 1]), NAMES, torch.zeros(1).long(), 0, outcome="out", process="process")


@quick
@given(
    st.lists(st.tuples(st.booleans(), st.floats(0, 2), st.booleans(), st.integers(0, 2)), max_size=8), st.integers(0, 9)
)
def test_rows_commute(rows, seed):
    x = torch.tensor([[float(a), b, float(c)] for a, b, c, _ in rows], dtype=torch.float64).view(-1, 3)
    group = torch.tensor([g for *_, g in rows], dtype=torch.int64)
    value, _ = outcome_or_process(x, NAMES, group, 0, **OPTIONS)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    again, _ = outcome_or_process(x[order], NAMES, group[order], 0, **OPTIONS)
    torch.testing.assert_close(again, value[order])
