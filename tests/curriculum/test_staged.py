import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.curriculum.staged import StagedDifficulty, difficulty_stages


def test_problems_are_split_by_length_and_success():
    assert difficulty_stages(torch.tensor([9, 1, 5, 2, 7, 4])).tolist() == [2, 0, 1, 0, 2, 1]
    same = torch.ones(4)
    assert difficulty_stages(same, torch.tensor([0.9, 0.1, 0.8, 0.0]), stages=2).tolist() == [0, 1, 0, 1]
    both = difficulty_stages(torch.tensor([1, 2, 3]), torch.tensor([0.0, 0.5, 1.0]), length_weight=1, success_weight=2)
    assert both.tolist() == [2, 1, 0]
    assert difficulty_stages(torch.tensor([1, 1, 1, 4, 4, 9])).tolist() == [0, 0, 0, 1, 1, 2]
    assert difficulty_stages(torch.tensor([3])).tolist() == [0]
    assert difficulty_stages(torch.tensor([])).tolist() == []
    with pytest.raises(ValueError, match="stages is 0"):
        difficulty_stages(torch.tensor([1]), stages=0)


@settings(deadline=None, max_examples=50)
@given(st.permutations(range(7)), st.lists(st.integers(0, 5), min_size=7, max_size=7))
def test_stages_follow_problems_and_rise_with_length(order, lengths):
    length = torch.tensor(lengths)
    stage, order = difficulty_stages(length), torch.tensor(order)
    assert torch.equal(difficulty_stages(length[order]), stage[order])
    assert torch.equal(difficulty_stages(3 * length + 2), stage)
    assert bool((stage[length.argsort()].diff() >= 0).all())


def test_a_stage_ends_by_success_alone():
    staged = StagedDifficulty(advance=0.7, least=10, decay=0.5)
    for _ in range(1000):
        assert not staged.update([0] * 20, [0.5] * 20)
    assert staged.stage == 0
    assert staged.rate == pytest.approx(0.5)
    assert staged.update([0] * 100, [1.0] * 100)
    assert (staged.stage, staged.tries, staged.rate) == (1, 0.0, 0.0)
    assert not staged.update([0] * 100, [1.0] * 100)
    assert staged.update([1] * 10, [1.0] * 10)
    assert not staged.update([2] * 100, [1.0] * 100)
    assert staged.stage == 2


def test_few_tries_do_not_count_and_old_ones_fade():
    staged = StagedDifficulty(least=10, advance=0.9, decay=0.5)
    assert not staged.update([0] * 9, [1.0] * 9)
    assert staged.tries == 9
    assert staged.update([0] * 6, [1.0] * 6)
    staged = StagedDifficulty(least=1, advance=0.9, decay=0.5)
    staged.update([0] * 8, [0.0] * 8)
    staged.update([0] * 4, [1.0] * 4)
    assert staged.rate == pytest.approx(4 / 8)
    staged.update([0, 0, 1], [float("nan"), 1.0, 0.0])
    assert staged.rate == pytest.approx((0.5 * 4 + 1) / (0.5 * 8 + 1))


def test_a_share_of_draws_goes_to_earlier_stages():
    staged = StagedDifficulty(4, keep=0.3)
    assert staged.probabilities.tolist() == [1, 0, 0, 0]
    staged.stage = 2
    assert staged.probabilities.tolist() == pytest.approx([0.15, 0.15, 0.7, 0.0])
    counts = torch.bincount(staged.draw(20000, 0), minlength=4) / 20000
    assert counts.tolist() == pytest.approx([0.15, 0.15, 0.7, 0.0], abs=0.015)
    assert torch.equal(staged.draw(9, 5), staged.draw(9, 5))
    assert StagedDifficulty(1).probabilities.tolist() == [1.0]


def test_problems_of_a_stage_are_drawn_alike():
    staged = StagedDifficulty(3, keep=0.4)
    staged.stage = 1
    of = torch.tensor([0, 1, 1, 1, 2, 0])
    share = torch.bincount(staged.choose(of, 30000, 3), minlength=6) / 30000
    assert share.tolist() == pytest.approx([0.2, 0.2, 0.2, 0.2, 0.0, 0.2], abs=0.015)
    with pytest.raises(ValueError, match="stage 1 has no problem"):
        staged.choose(torch.tensor([0, 2]), 1, 0)


def test_memory_is_restored():
    staged, other = StagedDifficulty(least=5), StagedDifficulty(least=5)
    staged.update([0] * 9, [1.0] * 9)
    staged.update([1] * 3, [1.0, 0.0, 1.0])
    other.load_state_dict(staged.state_dict())
    assert other.state_dict() == staged.state_dict() == {"stage": 1, "successes": 2.0, "tries": 3.0}
    assert torch.equal(staged.draw(20, 1), other.draw(20, 1))


@pytest.mark.parametrize("options", [{"stages": 0}, {"keep": 1.0}, {"decay": 1.0}, {"advance": 0.0}, {"least": 0.0}])
def test_options_have_ranges(options):
    with pytest.raises(ValueError, match="wanted"):
        StagedDifficulty(**options)


def test_numbers_of_stages_are_checked():
    with pytest.raises(ValueError, match="wanted 0 to 2"):
        StagedDifficulty().update([3], [1.0])
    assert not StagedDifficulty().update([], [])
