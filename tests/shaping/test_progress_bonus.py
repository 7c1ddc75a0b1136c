import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.registry import get
from guerdon.shaping.progress_bonus import progress_bonus

quick = settings(derandomize=True, deadline=None, max_examples=25)
NAN = float("nan")


def to_go(dense, turn, turns):
    """Returns of turns, by a loop."""
    return [[float(row[(t >= m)].sum()) for m in range(turns)] for row, t in zip(dense, turn, strict=True)]


def shaped(rewards, mask=None, step=0, **options):
    n, turns = rewards.shape
    turn = torch.arange(turns).repeat_interleave(2).expand(n, -1)
    mask = torch.ones_like(turn, dtype=torch.bool) if mask is None else mask
    out, stats = progress_bonus(rewards, torch.where(mask, turn, -1), mask, step, **options)
    return out, to_go(out.dense, torch.where(mask, turn, -1), turns), stats


def test_the_bonus_is_alpha_or_nothing_and_stays_with_its_turn():
    rewards = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    out, returns, stats = shaped(rewards)
    assert returns == [[1, 11], [1, -10], [2, 1], [0, 0]]
    assert out.reward.tolist() == [1, 1, 2, 0]
    assert stats == {"first": 0.5, "last": 0.5, "gain": 0.0}
    assert out.dense[0].tolist() == [0, -10, 0, 11]


def test_both_pays_for_wrong_first_answers():
    rewards = torch.rand(5, 2, generator=torch.Generator().manual_seed(0))
    out, returns, _ = shaped(rewards, bonus_to="both")
    expected = 11 * rewards[:, 1] - 9 * rewards[:, 0]
    torch.testing.assert_close(torch.tensor(returns)[:, 0], expected)
    torch.testing.assert_close(out.reward, expected)


def test_in_the_first_stage_the_last_attempt_alone_counts():
    rewards = torch.tensor([[1.0, 0.5], [0.0, 1.0]])
    out, returns, _ = shaped(rewards, first_stage=3, step=2)
    assert returns == [[0.5, 0.5], [1, 1]]
    assert out.reward.tolist() == [0.5, 1]
    assert shaped(rewards, first_stage=3, step=3)[1] == shaped(rewards)[1]


def test_an_episode_that_ended_early_has_no_bonus():
    mask = torch.tensor([[True, True, False, False], [True, False, True, True]])
    out, returns, stats = shaped(torch.tensor([[1.0, NAN], [NAN, 1.0]]), mask)
    assert returns == [[1, 0], [1, 11]]
    assert out.dense[~mask].tolist() == [0, 0, 0]
    assert stats["last"] == 1.0


@quick
@given(st.integers(1, 6), st.integers(2, 4), st.floats(0, 10), st.integers(0, 2**16))
def test_returns_by_their_formula_for_any_number_of_turns(n, turns, alpha, seed):
    rewards = torch.rand(n, turns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    bonus = torch.zeros_like(rewards)
    bonus[:, 1:] = alpha * (rewards[:, 1:] - rewards[:, :-1])
    rest = rewards.flip(1).cumsum(1).flip(1)
    _, own, _ = shaped(rewards, alpha=alpha)
    torch.testing.assert_close(torch.tensor(own, dtype=torch.float64), rest + bonus)
    _, both, _ = shaped(rewards, alpha=alpha, bonus_to="both")
    torch.testing.assert_close(torch.tensor(both, dtype=torch.float64), rest + bonus.flip(1).cumsum(1).flip(1))
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(shaped(rewards[order])[0].dense, shaped(rewards)[0].dense[order])


def test_no_rows_and_its_name():
    out, _, stats = shaped(torch.zeros(0, 2))
    assert out.reward.shape == (0,)
    assert stats["gain"] == 0.0
    assert get("shaping", "progress_bonus").target is progress_bonus
    assert get("shaping", "progress_bonus").produces == ("dense", "reward")
    with pytest.raises(ValueError, match="turn goes up to 1"):
        progress_bonus(torch.zeros(1, 1), torch.tensor([[0, 1]]), torch.ones(1, 2), 0)
