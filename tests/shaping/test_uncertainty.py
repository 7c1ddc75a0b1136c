import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.shaping.uncertainty import UsualGap, dynamic_scale, not_outlying

quick = settings(derandomize=True, deadline=None, max_examples=40)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_outliers_by_hand():
    # median 3, deviations 2 1 0 1 97, their median 1
    x = torch.tensor([1.0, 2.0, 3.0, 4.0, 100.0])
    assert not_outlying(x).tolist() == [True, True, True, True, False]
    assert not_outlying(x, tau=1.0).tolist() == [False, True, True, True, False]
    assert not_outlying(torch.tensor([5.0, 5.0, 5.0, 6.0])).tolist() == [True, True, True, False]
    assert not_outlying(torch.tensor([math.nan, 1.0, math.inf])).tolist() == [False, True, False]
    assert not_outlying(torch.tensor([math.nan])).tolist() == [False]
    assert not_outlying(torch.zeros(0)).tolist() == []


@quick
@given(st.lists(st.floats(-9, 9), min_size=1, max_size=12), st.floats(-3, 3), st.floats(0.1, 9))
def test_outliers_ignore_shift_and_scale_and_keep_at_least_half(values, shift, scale):
    x = torch.tensor(values, dtype=torch.float64)
    inside = not_outlying(x, tau=2.9)  # off the round numbers at which rounding decides
    assert inside.sum() * 2 >= len(values)
    distance = (x - x.quantile(0.5)).abs()
    clear = ((distance - 2.9 * distance.quantile(0.5)).abs() > 1e-6) | (distance == 0)
    assert (
        not_outlying(shift + scale * x, tau=2.9)[clear].tolist() == inside[clear].tolist()
        or scale * distance.max() < 1e-6
    )


def test_scale_by_hand():
    hardness = torch.tensor([0.2, 0.6], dtype=torch.float64)
    gap, usual = torch.tensor([1.0, -0.5], dtype=torch.float64), torch.tensor([0.5, 0.5], dtype=torch.float64)
    seen = dynamic_scale(hardness, gap, usual)
    by_hand = [
        sigmoid(0.2) / sigmoid(0.4) * sigmoid(1.0) / sigmoid(0.5),
        sigmoid(0.6) / sigmoid(0.4) * sigmoid(-0.5) / sigmoid(0.5),
    ]
    assert seen.tolist() == pytest.approx(by_hand)
    turned = dynamic_scale(hardness, gap, usual, hardness_sign=-1, gap_sign=-1)
    assert turned[1].item() == pytest.approx(sigmoid(-0.6) / sigmoid(-0.4) * sigmoid(0.5) / sigmoid(-0.5))
    assert dynamic_scale(hardness).tolist() == pytest.approx([sigmoid(0.2) / sigmoid(0.4), sigmoid(0.6) / sigmoid(0.4)])
    assert dynamic_scale(None, gap, usual)[0].item() == pytest.approx(sigmoid(1.0) / sigmoid(0.5))


@quick
@given(st.floats(0, 1), st.floats(-5, 5), st.integers(1, 6), st.sampled_from([1, -1]))
def test_nothing_unusual_scales_by_one(hardness, gap, n, sign):
    every = torch.full((n,), hardness, dtype=torch.float64)
    same = torch.full((n,), gap, dtype=torch.float64)
    torch.testing.assert_close(dynamic_scale(every, same, same, gap_sign=sign), torch.ones(n, dtype=torch.float64))


def test_scale_grows_with_hardness_and_gap_and_is_a_constant():
    hardness = torch.linspace(0, 1, 9, requires_grad=True)
    gap = torch.linspace(-3, 3, 9, requires_grad=True)
    assert (dynamic_scale(hardness).diff() > 0).all()
    assert (dynamic_scale(hardness, hardness_sign=-1).diff() < 0).all()
    assert (dynamic_scale(None, gap, torch.zeros(9)).diff() > 0).all()
    assert (dynamic_scale(None, gap, torch.zeros(9), gap_sign=-1).diff() < 0).all()
    assert not dynamic_scale(hardness, gap, torch.zeros(9)).requires_grad


def test_scale_wants_one_part_or_both():
    with pytest.raises(ValueError, match="needs the hardness"):
        dynamic_scale(None)
    with pytest.raises(ValueError, match="needs the hardness"):
        dynamic_scale(torch.zeros(2), torch.zeros(2))


def test_usual_gaps_by_category_without_outliers():
    usual = UsualGap(momentum=0.75)
    rows = {"a": torch.tensor([0, 2, 4, 6]), "b": torch.tensor([1, 3, 5])}
    gap = torch.tensor([1.0, 7.0, 1.2, 7.0, 0.8, 7.0, 50.0])
    now, before = usual(gap, rows)
    assert now.tolist() == pytest.approx([1.0, 7.0, 1.0, 7.0, 1.0, 7.0, 1.0])
    assert before.tolist() == now.tolist(), "the first batch starts the mean"
    now, before = usual(gap + 1, rows)
    assert now[0].item() == pytest.approx(2.0)
    assert before[0].item() == pytest.approx(1.0), "frozen within the batch"
    assert usual.mean == pytest.approx({"a": 0.75 * 1 + 0.25 * 2, "b": 0.75 * 7 + 0.25 * 8})
    fresh = UsualGap(momentum=0.75)
    fresh.load_state_dict(json.loads(json.dumps(usual.state_dict())))
    assert fresh(gap, rows)[1].tolist() == usual(gap, rows)[1].tolist()


def test_a_category_without_a_usable_gap_is_left_alone():
    usual = UsualGap()
    now, before = usual(torch.tensor([math.nan, 2.0]), {"a": torch.tensor([0]), "b": torch.tensor([1])})
    assert now.tolist() == before.tolist() == [0.0, 2.0]
    assert usual.mean == {"b": 2.0}
