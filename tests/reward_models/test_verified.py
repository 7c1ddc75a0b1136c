from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.reward_models.verified import answer_recall, false_positives, verified_pass_at_n

quick = settings(derandomize=True, deadline=None, max_examples=40)
SAMPLES = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=7)


@quick
@given(samples=SAMPLES, n=st.integers(1, 7))
def test_verified_pass_is_the_share_of_draws_that_hold_a_sound_right_answer(samples, n):
    n = min(n, len(samples))
    right, sound = (torch.tensor([column]) for column in zip(*samples, strict=True))
    draws = list(combinations([a and b for a, b in samples], n))
    seen = float(verified_pass_at_n(right, sound, n))
    assert seen == pytest.approx(sum(any(draw) for draw in draws) / len(draws))
    assert seen <= float(verified_pass_at_n(right, torch.ones_like(sound), n)) + 1e-12
    # The order of the samples does not matter.
    assert float(verified_pass_at_n(right.flip(1), sound.flip(1), n)) == pytest.approx(seen)


def test_mean_over_problems_and_refusals():
    right = torch.tensor([[True, False], [True, True]])
    assert float(verified_pass_at_n(right, right, 1)) == pytest.approx(0.75)
    assert float(verified_pass_at_n(right, torch.tensor([[False, True], [True, True]]), 1)) == pytest.approx(0.5)
    with pytest.raises(ValueError, match=r"right has shape \(2, 2\) and sound \(2, 1\)"):
        verified_pass_at_n(right, right[:, :1], 1)
    with pytest.raises(ValueError, match="pass@3"):
        verified_pass_at_n(right, right, 3)


def test_answer_recall_by_hand():
    ranked, answer = torch.tensor([[3, 1, 2], [5, 6, 7], [9, 8, 7]]), torch.tensor([1, 5, 4])
    assert [float(answer_recall(ranked, answer, k)) for k in (1, 2, 3)] == pytest.approx([1 / 3, 2 / 3, 2 / 3])


def test_false_positives_by_hand():
    score = torch.tensor([0.0, 0.2, 0.9, 1.0, 0.3, 0.0])
    right = torch.tensor([True, True, True, True, True, False])
    sound = torch.tensor([False, False, False, True, True, False])
    seen = false_positives(score, right, sound)
    # Called: 0.0, 0.2 and 0.3; two of them are false positives, of which there are three. The wrong answer is no case.
    assert (seen.precision, seen.recall, seen.f1) == pytest.approx((2 / 3, 2 / 3, 2 / 3))
    assert seen.share[[0, 2, 9, 10, 3]].tolist() == [1, 1, 1, 0, 0]
    assert seen.share[5].isnan()


def test_without_any_case():
    none = torch.zeros(3, dtype=torch.bool)
    seen = false_positives(torch.rand(3), none, none)
    assert (seen.precision, seen.recall, seen.f1) == (0, 0, 0)
    assert seen.share.isnan().all()
