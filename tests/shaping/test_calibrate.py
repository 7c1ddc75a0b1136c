import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.errors import RecipeError
from guerdon.registry import get
from guerdon.shaping.calibrate import calibrate_low, flip_noise

quick = settings(derandomize=True, deadline=None, max_examples=30)
NAMES = ("a", "s", "p")


def test_calibration_by_hand():
    rows = [[0.2, 1.0], [0.49, 0.5], [0.5, 1.0], [0.9, 1.0], [0.2, 0.0], [math.nan, 1.0], [0.2, math.nan]]
    components = torch.tensor([[7.0, *row] for row in rows])
    seen, stats = calibrate_low(components, NAMES, score="s", pattern="p")
    wanted = [0.3, 0.54, 0.5, 0.9, 0.2, math.nan, 0.2]
    assert seen[:, 1].tolist() == pytest.approx(wanted, nan_ok=True)
    assert torch.equal(seen[:, 0], components[:, 0])
    torch.testing.assert_close(seen[:, 2], components[:, 2], equal_nan=True)
    assert stats["raised"] == pytest.approx(2 / 7)
    bounded, _ = calibrate_low(components[:1], NAMES, score="s", pattern="p", gain=5.0)
    assert bounded[0, 1] == 1.0


@quick
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), max_size=8))
def test_calibration_never_lowers_and_leaves_high_scores_alone(rows):
    components = torch.tensor([[0.0, *row] for row in rows], dtype=torch.float64).reshape(-1, 3)
    seen, _ = calibrate_low(components, NAMES, score="s", pattern="p")
    score = components[:, 1]
    assert (seen[:, 1] >= score).all()
    assert (seen[:, 1] <= score + 0.1 + 1e-12).all()
    assert torch.equal(seen[score >= 0.5], components[score >= 0.5])


def test_flips_of_one_reward_and_of_all():
    components, group = torch.tensor([[1.0, 0.25, math.nan]] * 3), torch.tensor([0, 0, 4])
    seen, stats = flip_noise(components, NAMES, group, 3, p=1.0)
    torch.testing.assert_close(seen, torch.tensor([[0.0, 0.75, math.nan]] * 3), equal_nan=True)
    assert stats == {"flipped": 1.0}
    one, _ = flip_noise(components, NAMES, group, 3, p=1.0, reward="s")
    torch.testing.assert_close(one, torch.tensor([[1.0, 0.75, math.nan]] * 3), equal_nan=True)
    none, _ = flip_noise(components[:0], NAMES, group[:0], 3, p=0.5)
    assert none.shape == (0, 3)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("calibrate_low", {"score": "q", "pattern": "p"}, "no reward is called 'q'"),
        ("calibrate_low", {"score": "s", "pattern": "s"}, "both 's'; name two rewards"),
        ("flip_noise", {"p": 0.1, "reward": "q"}, "flip_noise: no reward is called 'q'"),
    ],
)
def test_wrong_names_are_refused(name, options, message):
    fields = {"components": torch.ones(1, 3), "component_names": NAMES, "group": torch.zeros(1).long(), "seed": 0}
    with pytest.raises(RecipeError, match=message):
        get("shaping", name).bind(options)(fields)


def test_a_probability_is_wanted():
    with pytest.raises(RecipeError, match="less than or equal to 1"):
        get("shaping", "flip_noise").bind({"p": 2})
