import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.controllers import PID, BatchMeans, Controller

quick = settings(derandomize=True, deadline=None, max_examples=40)


def test_three_updates_by_hand():
    pid = PID(kp=2.0, ki=0.5, kd=1.0, target=1.0)
    # errors 1, 3, -1; sums 1, 4, 3; changes 1, 2, -4
    outputs = [pid.update({"measured": x}) for x in (2.0, 4.0, 0.0)]
    assert [o["output"] for o in outputs] == [2 + 0.5 + 1, 6 + 2 + 2, -2 + 1.5 - 4]
    assert [o["error"] for o in outputs] == [1, 3, -1]


def test_the_sum_is_bounded_and_leaves_its_bound_at_once():
    pid = PID(kp=0.0, ki=1.0, kd=0.0, limit=2.0)
    assert [pid.update({"measured": 1.5})["output"] for _ in range(3)] == [1.5, 2.0, 2.0]
    assert pid.update({"measured": -0.5})["output"] == 1.5
    assert [pid.update({"measured": -9.0})["output"] for _ in range(2)] == [-2.0, -2.0]


@quick
@given(st.lists(st.floats(-5, 5), min_size=2, max_size=12), st.integers(1, 11))
def test_a_restored_controller_goes_on_as_if_never_stopped(measured, cut):
    whole, first, second = (PID(0.3, 0.01, 0.05, target=0.2, limit=1.0) for _ in range(3))
    outputs = [whole.update({"measured": x}) for x in measured]
    seen = [first.update({"measured": x}) for x in measured[:cut]]
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert seen + [second.update({"measured": x}) for x in measured[cut:]] == outputs
    assert isinstance(second, Controller)


def test_it_removes_a_constant_disturbance():
    """The integral finds the input that a plant x = u - 3 needs to rest at 0.5."""
    pid, x = PID(kp=-0.2, ki=-0.3, kd=0.0, target=0.5), 0.0
    for _ in range(60):
        x = pid.update({"measured": x})["output"] - 3
    assert x == pytest.approx(0.5, abs=1e-6)


def test_means_are_handed_out_once_when_a_step_begins():
    means = BatchMeans()
    assert means.begin(0) == {}
    means.add(3, kl=1.0, entropy=2.0)
    assert means.begin(0) == {}
    means.add(1, kl=5.0)
    means.add(4, entropy=math.inf)
    means.add(0, reward=7.0)
    means = restored(means)
    assert means.begin(1) == {"kl": 2.0, "entropy": 2.0}
    assert means.begin(2) == {}


def restored(means):
    again = BatchMeans()
    again.load_state_dict(json.loads(json.dumps(means.state_dict())))
    return again
