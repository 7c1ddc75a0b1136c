import pytest

from guerdon.engine.padding import left_pad, right_pad


def test_left_pad():
    ids, mask = left_pad([[1, 2], [3]], pad=0)
    assert ids.tolist() == [[1, 2], [0, 3]]
    assert mask.tolist() == [[True, True], [False, True]]


def test_right_pad():
    ids, mask = right_pad([[1, 2], [3], []], pad=9)
    assert ids.tolist() == [[1, 2], [3, 9], [9, 9]]
    assert mask.tolist() == [[True, True], [True, False], [False, False]]


@pytest.mark.parametrize("padded", [left_pad, right_pad])
def test_nothing_to_pad(padded):
    ids, mask = padded([], pad=0)
    assert ids.shape == mask.shape == (0, 0)
