import pytest
from hypothesis import given
from hypothesis import strategies as st

from guerdon.shaping.length import think_length_window, window


def test_hard_edges_and_shoulders():
    assert [window(x, 10, 20) for x in (9.9, 10, 15, 20, 20.1)] == [0, 1, 1, 1, 0]
    # (L - (low - margin)) / margin below, and its mirror above.
    seen = [window(x, 10, 20, margin=10) for x in (0, 2.5, 9, 10, 20, 21, 27.5, 30)]
    assert seen == pytest.approx([0, 0.25, 0.9, 1, 1, 0.9, 0.25, 0])
    with pytest.raises(ValueError, match="low <= high"):
        window(1, 3, 2)
    with pytest.raises(ValueError, match="margin >= 0"):
        window(1, 2, 3, margin=-1)


@given(st.floats(-100, 300), st.floats(0, 100), st.floats(0, 100), st.floats(0, 50))
def test_it_is_symmetric_and_between_0_and_1(length, low, width, margin):
    value = window(length, low, low + width, margin=margin)
    assert 0 <= value <= 1
    assert window(2 * low + width - length, low, low + width, margin=margin) == pytest.approx(value, abs=1e-6) or (
        margin < 1e-6 or min(abs(length - low), abs(length - low - width)) < 1e-9
    )


def test_the_first_thought_counts_in_characters():
    assert think_length_window("<think> four </think>answer", low=4, high=4) == 1.0
    assert think_length_window("<think>a\nbc</think><think>long enough</think>", low=5, high=20) == 0.0
    assert think_length_window("no thought at all, but long enough") == 0.0
    assert think_length_window("<think>never closed, so it is no thought", low=0, high=1000) == 0.0
    assert think_length_window("[[ab]]", low=2, high=2, opening="[[", closing="]]") == 1.0
    assert think_length_window("<think>12345678</think>", low=10, high=20, margin=10) == pytest.approx(0.8)
