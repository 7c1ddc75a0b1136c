import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.monitor.length_collapse import hockey_stick, length_collapse


def test_a_collapse_by_hand():
    seen = length_collapse([100, 90, 40, 60, 120])
    assert (seen.found, seen.step) == (True, 2)
    assert seen.drop == pytest.approx(0.6)
    assert not length_collapse([100, 90, 40], drop=0.6).found


def test_what_comes_late_is_no_early_collapse():
    assert not length_collapse([10, 10, 10, 1], first=2).found
    assert length_collapse([10, 10, 10, 1], first=3).found


def test_growth_and_an_empty_beginning_lose_nothing():
    assert length_collapse([10, 11, 12]) == (False, 0.0, 0)
    assert length_collapse([0, 5, 0]) == (False, 0.0, 0)


def test_a_window_looks_through_noise():
    noisy = [10, 4, 10, 10, 10, 10]
    assert length_collapse(noisy, drop=0.5).found
    assert not length_collapse(noisy, drop=0.5, window=3).found


def test_a_hockey_stick_by_hand():
    seen = hockey_stick([0.5, 0.4, 0.2, 0.3, 0.6, 0.1])
    assert (seen.found, seen.lowest, seen.back) == (True, 2, 4.0)
    assert seen.dip == pytest.approx(0.3)


@pytest.mark.parametrize("reward", [[0.5, 0.6, 0.9], [0.5, 0.4, 0.3], [0.5, 0.9, 0.4], [0.5, 0.4, 0.5], [0.5]])
def test_what_only_rises_or_never_comes_back_is_none(reward):
    seen = hockey_stick(reward)
    assert not seen.found
    assert math.isnan(seen.back)


def test_small_dips_are_within_the_margin():
    assert hockey_stick([0.5, 0.45, 0.7]).found
    assert not hockey_stick([0.5, 0.45, 0.7], margin=0.1).found


def test_too_few_steps_are_refused():
    with pytest.raises(ValueError, match="got 2 steps and a window of 3"):
        length_collapse([1, 2], window=3)
    with pytest.raises(ValueError, match="got 0 steps"):
        hockey_stick([])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=12))
def test_a_hockey_stick_against_a_loop(reward):
    fell, back = None, None
    for step, value in enumerate(reward):
        if fell is None and value < reward[0]:
            fell = step
        elif fell is not None and back is None and value > reward[0]:
            back = step
    seen = hockey_stick(reward)
    assert seen.found == (fell is not None and back is not None)
    assert seen.dip == (reward[0] - min(reward[:back]) if fell is not None else 0)
