import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from guerdon.shaping.control import control_sum, controls_of

COMPONENTS = torch.tensor([[1.0, 30.0, 5.0], [2.0, 10.0, 6.0], [3.0, 20.0, 7.0]])
NAMES, ONES = ("new", "doable", "valid"), torch.ones(3)


def asked(*vectors):
    return [{"control": list(vector)} for vector in vectors]


def test_rewards_are_standardised_and_mixed_as_each_problem_asks():
    metadata = asked((1.0, 0.5, 0.0), (-1.0, 1.0, 0.0), (0.0, 0.0, -0.5))
    seen = control_sum(COMPONENTS, NAMES, ONES, metadata, eps=0.0)
    # z: new (-1, 0, 1), doable (1, -1, 0), valid (-1, 0, 1)
    assert seen.tolist() == pytest.approx([-1.0 + 0.5, -1.0, -0.5])


def test_other_rewards_are_added_as_they_are():
    metadata = asked((0.5, 0.0), (0.5, 0.0), (0.0, 0.25))
    weights = torch.tensor([2.0, 4.0, 10.0])
    seen = control_sum(COMPONENTS, NAMES, weights, metadata, dimensions=["doable", "new"], eps=0.0)
    assert seen.tolist() == pytest.approx([0.5 * 4 + 50.0, -0.5 * 4 + 60.0, 0.25 * 2 + 70.0])


def test_controls_are_bounded_on_both_sides():
    metadata = asked((9.0, -9.0, 0.0), (0.0, 0.0, 0.0), (9.0, -9.0, 0.0))
    for limit in (1.0, 0.5):
        seen = control_sum(COMPONENTS, NAMES, ONES, metadata, limit=limit, eps=0.0)
        assert seen.tolist() == pytest.approx([-2 * limit, 0.0, limit])


@given(st.floats(0.01, 1e4), st.floats(-1e3, 1e3))
def test_the_scale_of_a_dimension_does_not_count(scale, shift):
    metadata = asked((1.0, 0.5, -0.5), (-1.0, 1.0, 0.2), (0.1, 0.3, -0.5))
    moved = COMPONENTS.double().clone()
    moved[:, 1] = moved[:, 1] * scale + shift
    seen = control_sum(moved, NAMES, ONES, metadata, eps=0.0)
    assert torch.allclose(seen, control_sum(COMPONENTS.double(), NAMES, ONES, metadata, eps=0.0), atol=1e-6)


def test_what_does_not_apply_counts_for_nothing():
    components = torch.cat([COMPONENTS, torch.tensor([[math.nan, 20.0, 6.0]])])
    metadata = asked((1.0, 0.0, 0.0), (1.0, 0.0, 0.0), (1.0, 0.0, 0.0), (1.0, 0.0, 0.0))
    assert control_sum(components, NAMES, ONES, metadata, eps=0.0).tolist() == pytest.approx([-1.0, 0.0, 1.0, 0.0])


def test_equal_rewards_say_nothing():
    metadata = asked((1.0, 0.0, 0.0), (1.0, 0.0, 0.0), (-1.0, 0.0, 0.0))
    equal = COMPONENTS.clone()
    equal[:, 0] = 0.1
    assert control_sum(equal, NAMES, ONES, metadata).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ([{"control": [1.0, 2.0, 3.0]}, {"control": [1.0]}, {}], r"sample 1 have \[1.0\] under 'control', wanted 3"),
        ([{}, {}, {}], "sample 0 have nothing under 'control'"),
        ([{"control": 0.5}] * 3, "sample 0 have 0.5"),
    ],
)
def test_problems_without_a_fitting_vector_are_refused(metadata, message):
    with pytest.raises(ValueError, match=message):
        control_sum(COMPONENTS, NAMES, ONES, metadata)


def test_unknown_dimensions_are_refused():
    with pytest.raises(ValueError, match="no reward 'odd' to control; known: new, doable, valid"):
        control_sum(COMPONENTS, NAMES, ONES, asked((1.0,)), dimensions=["odd"])


def test_vectors_may_stand_under_another_key():
    assert controls_of([{"wish": [1, 2]}, {"wish": torch.tensor([3.0, 4.0])}], 2, key="wish").tolist() == [
        [1, 2],
        [3, 4],
    ]
