import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from guerdon.errors import RecipeError
from guerdon.registry import get
from guerdon.shaping.length import cosine_length, think_length_window, window


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


def test_cosine_by_hand():
    length = torch.tensor([0, 256, 512, 1024, 5000])
    quarter = (1 + math.cos(math.pi / 4)) / 2
    added = {1.0: [1.0, 0.5 + 0.5 * quarter, 0.75, 0.5, 0.5], 0.0: [0.0, -0.5 + 0.5 * quarter, -0.25, -0.5, -0.5]}
    for score, expected in added.items():
        components = torch.tensor([[9.0, score]] * 5)
        out = cosine_length(torch.ones(5), components, ["format", "iou"], length, correct="iou")
        assert out.tolist() == pytest.approx([1 + x for x in expected])


def test_right_is_from_the_threshold_on_and_what_does_not_apply_is_left_alone():
    components = torch.tensor([[0.69], [0.7], [float("nan")]])
    options = {"correct": "iou", "right": (2.0, 1.0), "wrong": (-1.0, -2.0), "longest": 10, "weight": 0.5}
    out = cosine_length(torch.zeros(3), components, ["iou"], torch.tensor([0, 10, 10]), **options)
    assert out.tolist() == pytest.approx([-0.5, 0.5, 0.0])


@given(st.lists(st.integers(0, 2000), min_size=2, max_size=8), st.booleans())
def test_longer_never_earns_more(lengths, right):
    length = torch.tensor(sorted(lengths))
    components = torch.full((len(length), 1), float(right))
    out = cosine_length(torch.zeros(len(length)), components, ["x"], length, correct="x")
    assert (out.diff() <= 1e-7).all()


def test_cosine_in_a_recipe():
    bound = get("shaping", "cosine_length").bind({"correct": "iou", "longest": 8})
    fields = {"reward": torch.zeros(1), "components": torch.ones(1, 1), "length": torch.tensor([8])}
    assert bound(fields | {"component_names": ("iou",)}).fields["reward"].tolist() == [0.5]
    with pytest.raises(RecipeError, match="no reward is called 'iou'; known: IoU"):
        bound(fields | {"component_names": ("IoU",)})
