import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.shaping.length_history import HapoReward, relative_length_reward

quick = settings(derandomize=True, deadline=None, max_examples=25)
A, B = 7, 2**40


def batch(*rows):
    """Outcome, length and problem of (right, length, problem)."""
    right, length, task = zip(*rows, strict=True)
    return torch.tensor(right, dtype=torch.float64), torch.tensor(length), torch.tensor(task)


def after(method, *rows):
    method(*batch(*rows))
    return method


def test_golden_values_at_a_history_of_100():
    method = after(HapoReward(), (1, 100, A))
    shaped, stats = method(*batch(*[(1, n, A) for n in (50, 100, 150)], *[(0, n, A) for n in (50, 150, 250)]))
    assert shaped.tolist() == pytest.approx([1 + math.sqrt(0.5), 1.0, 0.3, 0.0, -math.sqrt(0.5), -1.0])
    assert stats == {"history": 1.0, "ratio": 1.0}


def test_the_linear_form():
    method = after(HapoReward(form="linear"), (1, 100, A))
    rows = [(1, 50, A), (1, 105, A), (1, 150, A), (1, 500, A), (0, 50, A), (0, 150, A), (0, 500, A)]
    shaped, _ = method(*batch(*rows))
    assert shaped.tolist() == pytest.approx([1.5, 1.0, 0.6, 0.3, 0.0, -0.4, -1.0])


def test_a_batch_is_rewarded_by_what_came_before_it():
    method = HapoReward()
    shaped, stats = method(*batch((1, 100, A), (1, 50, A), (0, 10, A), (1, 3, B)))
    assert shaped.tolist() == [1.0, 1.0, 0.0, 1.0]
    assert stats == {"history": 0.0}
    assert method.usual(torch.tensor([B, A, 5])).tolist()[:2] == [3.0, 50.0]
    assert math.isnan(method.usual(torch.tensor([5])).item())


def test_wrong_and_empty_answers_leave_no_history():
    method = after(HapoReward(), (0, 4, A), (1, 0, A))
    assert method.known == {}
    after(method, (1, 9, A), (0, 1, A), (1, 0, A))
    assert method.known == {A: [9.0]}


def test_a_lucky_guess_stays_in_the_least_length_only():
    usual = {}
    for memory in ("min", "mean", "quantile"):
        method = HapoReward(memory=memory, quantile=0.5)
        for length in (100, 2, 100, 100):
            after(method, (1, length, A))
        usual[memory] = method.usual(torch.tensor([A])).item()
    assert usual == {"min": 2.0, "mean": 75.5, "quantile": 100.0}


def test_the_mean_counts_a_problem_once_a_step():
    method = after(HapoReward(memory="mean"), (1, 10, A), (1, 20, A), (1, 30, A), (1, 5, B))
    after(method, (1, 40, A))
    assert method.known == {A: [60.0, 2.0], B: [5.0, 1.0]}  # steps of mean 20 and 40


@pytest.mark.parametrize("memory", ["min", "mean", "quantile"])
def test_workers_merge_and_state_survives(memory):
    one = after(HapoReward(memory=memory), (1, 10, A), (1, 8, B))
    other = after(HapoReward(memory=memory), (1, 6, A), (1, 3, 1))
    one.merge(json.loads(json.dumps(other.state_dict())))
    assert one.known[A] == {"min": [6.0], "mean": [16.0, 2.0], "quantile": [10.0, 6.0]}[memory]
    assert one.known[1] == other.known[1]
    fresh = HapoReward(memory=memory)
    fresh.load_state_dict(json.loads(json.dumps(one.state_dict())))
    assert fresh.known == one.known


def test_the_quantile_keeps_the_last_lengths():
    method = after(HapoReward(memory="quantile", keep=3), *[(1, n, A) for n in (1, 2, 3, 4)])
    assert method.known == {A: [2.0, 3.0, 4.0]}
    method.merge({"known": {str(A): [5.0, 6.0]}})
    assert method.known == {A: [4.0, 5.0, 6.0]}


lengths = st.lists(st.tuples(st.booleans(), st.integers(0, 400), st.integers(0, 3)), min_size=1, max_size=16)


@quick
@given(lengths, st.sampled_from(["cosine", "linear"]), st.integers(0, 99))
def test_right_stays_above_wrong_and_shorter_above_longer(rows, form, seed):
    method = after(HapoReward(form=form), (1, 100, 0), (1, 7, 1))
    reward, length, task = batch(*rows)
    shaped, _ = method(reward, length, task)
    assert (shaped[reward == 1] >= 0.3 - 1e-9).all()
    assert (shaped[reward == 0] <= 0).all()
    for i in range(len(rows)):
        for j in range(len(rows)):
            if rows[i][0] == rows[j][0] and rows[i][2] == rows[j][2] and rows[i][1] <= rows[j][1]:
                assert shaped[i] >= shaped[j] - 1e-9
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    again = after(HapoReward(form=form), (1, 100, 0), (1, 7, 1))
    assert torch.allclose(again(reward[order], length[order], task[order])[0], shaped[order])
    assert again.known == method.known


def test_no_history_no_reward_and_no_rows():
    nothing = relative_length_reward(torch.ones(2).bool(), torch.tensor([1, 2]), torch.tensor([math.nan, 0.0]))
    assert nothing.tolist() == [0.0, 0.0]
    empty, stats = HapoReward()(torch.zeros(0), torch.zeros(0).long(), torch.zeros(0).long())
    assert len(empty) == 0
    assert stats == {}
