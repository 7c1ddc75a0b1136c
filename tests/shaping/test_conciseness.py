import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.errors import RecipeError
from guerdon.shaping.conciseness import conciseness_reward

quick = settings(derandomize=True, deadline=None, max_examples=25)
NAMES = ("task", "conciseness")


def shaped(reward, score, group, step=0, **options):
    reward, score = torch.tensor(reward), torch.tensor(score)
    return conciseness_reward(reward, torch.stack([reward, score], 1), NAMES, torch.tensor(group), step, **options)


def test_by_hand():
    # Half of the group is right: d = 0.5; s = 1 at step 0 and 0.4 at step 60 of 100.
    out, stats = shaped([1.0, 1.0, 0.0, 0.0], [0.2, 1.0, 1.0, 0.1], [3, 3, 3, 3], anneal=100)
    assert out.tolist() == pytest.approx([1 + 0.5 * 0.2 * 1.5, 1 + 0.5 * 1.5, 0.0, 0.0])
    assert stats == {"anneal": 1.0, "spread": pytest.approx(0.8 / 2**0.5)}
    out, stats = shaped([1.0, 1.0, 0.0, 0.0], [0.2, 1.0, 1.0, 0.1], [3, 3, 3, 3], step=60, anneal=100)
    assert out.tolist() == pytest.approx([1 + 0.5 * 0.2 * 0.9, 1 + 0.5 * 0.9, 0.0, 0.0])
    assert stats["anneal"] == pytest.approx(0.4)
    out, _ = shaped([1.0, 0.0], [1.0, 1.0], [0, 0], step=500, easiness="none", anneal=100)
    assert out.tolist() == [1.0, 0.0]


def test_easy_groups_pay_more_for_brevity():
    out, _ = shaped([1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0], [0, 0, 1, 1], step=99, anneal=1, alpha=1.0)
    assert out.tolist() == pytest.approx([2.0, 2.0, 1.5, 0.0])


scores = st.lists(st.tuples(st.integers(0, 2), st.booleans(), st.floats(0, 1)), min_size=1, max_size=12)


@quick
@given(scores, st.integers(0, 900), st.integers(0, 99))
def test_it_pays_right_answers_alone_and_shorter_ones_more(rows, step, seed):
    group, right, score = zip(*rows, strict=True)
    out, _ = shaped([float(x) for x in right], list(score), list(group), step)
    more, _ = shaped([float(x) for x in right], [min(1.0, x + 0.1) for x in score], list(group), step)
    for row in range(len(rows)):
        assert (out[row] == 0) == (not right[row])
        if right[row] and score[row] < 1:
            assert more[row] > out[row]  # d > 0 in a group with a right answer, whatever the step
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    again, _ = shaped(*([column[i] for i in order] for column in ([float(x) for x in right], score, group)), step)
    assert torch.allclose(again, out[order])


def test_a_score_that_does_not_apply_is_no_bonus_and_no_rows_are_none():
    out, _ = shaped([1.0, 1.0], [float("nan"), 0.0], [0, 0])
    assert out.tolist() == [1.0, 1.0]
    empty = conciseness_reward(torch.zeros(0), torch.zeros(0, 2), NAMES, torch.zeros(0).long(), 0)[0]
    assert len(empty) == 0


def test_negative_outcomes_and_unknown_scores_are_refused():
    with pytest.raises(ValueError, match="give wrong answers 0"):
        shaped([1.0, -1.0], [0.5, 0.5], [0, 0])
    with pytest.raises(RecipeError, match="no reward is called 'concisenes'"):
        conciseness_reward(torch.ones(1), torch.ones(1, 2), NAMES, torch.zeros(1).long(), 0, score="concisenes")
