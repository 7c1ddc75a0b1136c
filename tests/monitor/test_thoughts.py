import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.monitor.thoughts import thought_collapse


def test_thoughts_that_name_their_state_carry_all_of_it():
    states = [0, 1, 2, 3] * 5
    seen = thought_collapse([f"i see {s}" for s in states], states)
    assert seen.information == pytest.approx(math.log(4))
    assert seen.share == pytest.approx(1.0)
    assert seen.per_100 == 100.0
    assert seen.distinct == pytest.approx(5 / 40)


def test_boilerplate_carries_nothing():
    seen = thought_collapse(["let me think"] * 20, list(range(4)) * 5)
    assert seen == (2 / 40, 25.0, 0.0, 0.0)


def test_half_of_the_states_told_apart():
    seen = thought_collapse(["low", "low", "high", "high"] * 3, [0, 1, 2, 3] * 3, n=1)
    assert seen.information == pytest.approx(math.log(2))
    assert seen.share == pytest.approx(0.5)
    assert seen.per_100 == 50.0


def test_random_thoughts_are_diverse_without_information():
    generator = torch.Generator().manual_seed(0)
    states = torch.randint(5, (20_000,), generator=generator).tolist()
    thoughts = [str(t) for t in torch.randint(5, (20_000,), generator=generator).tolist()]
    seen = thought_collapse(thoughts, states)
    assert seen.per_100 == 100.0
    assert seen.share < 0.01


def test_short_and_empty_thoughts():
    assert thought_collapse(["a", "a b c", ""], [0, 1, 2]).distinct == 1.0
    assert thought_collapse(["", ""], [0, 1]) == (0.0, 50.0, 0.0, 0.0)
    assert thought_collapse([], []) == (0.0, 0.0, 0.0, 0.0)
    assert thought_collapse(["a", "b"], [0, 0]).share == 0.0
    with pytest.raises(ValueError, match="2 thoughts, 1 states"):
        thought_collapse(["a", "b"], [0])
    with pytest.raises(ValueError, match="n 0"):
        thought_collapse(["a"], [0], n=0)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3)), min_size=1, max_size=20), st.randoms())
def test_order_does_not_matter_and_information_is_bounded(pairs, random):
    other = pairs[:]
    random.shuffle(other)
    one = thought_collapse([t for t, _ in pairs], [s for _, s in pairs])
    assert thought_collapse([t for t, _ in other], [s for _, s in other]) == pytest.approx(one)
    counts = torch.zeros(3, 4)
    for t, s in pairs:
        counts["abc".index(t), s] += 1
    joint = counts.double() / len(pairs)
    outside = joint.sum(dim=1, keepdim=True) * joint.sum(dim=0)
    direct = float(torch.where(joint > 0, joint * (joint.clamp(min=1e-30) / outside.clamp(min=1e-30)).log(), 0.0).sum())
    assert one.information == pytest.approx(direct, abs=1e-9)
    assert 0 <= one.share <= 1 + 1e-9
