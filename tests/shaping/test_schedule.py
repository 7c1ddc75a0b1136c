import json
import math

import numpy as np
import pytest
import torch

from guerdon.controllers import Controller
from guerdon.shaping.schedule import SlopeWeightedSum, SlopeWeights

NAN = float("nan")


def fed(weights, histories):
    for row in zip(*histories, strict=True):
        out = weights.update(dict(zip(weights.names, row, strict=True)))
    return out


def test_a_flat_reward_gets_more_than_a_rising_one_and_they_add_up():
    rising = [0.01 * t for t in range(20)]
    weights = SlopeWeights(["flat", "rising"])
    assert isinstance(weights, Controller)
    out = fed(weights, [[0.3] * 20, rising])
    assert weights.slopes().tolist() == pytest.approx([0.0, 0.01])
    # T = median |b| = 0.005, so the target is 2 [1, e^-2] / (1 + e^-2).
    assert out["flat"] == pytest.approx(0.8 + 0.2 * 2 / (1 + math.exp(-2)), rel=1e-5)
    assert out["rising"] == pytest.approx(0.8 + 0.2 * 2 / (1 + math.exp(2)), rel=1e-5)
    assert sum(out.values()) == pytest.approx(2.0)


def test_weights_follow_the_formula():
    rng = np.random.default_rng(0)
    histories = rng.random((3, 25))
    weights = SlopeWeights(["a", "b", "c"], window=5, momentum=0.7, temperature=0.05)
    expected = np.ones(3)
    for t in range(25):
        out = weights.update(dict(zip("abc", histories[:, t], strict=True)))
        if t >= 4:
            slope = np.array([np.polyfit(range(5), histories[k, t - 4 : t + 1], 1)[0] for k in range(3)])
            target = 3 * np.exp(-slope / 0.05) / np.exp(-slope / 0.05).sum()
            expected = 0.7 * expected + 0.3 * target
        assert list(out.values()) == pytest.approx(list(expected))


def test_all_are_1_before_the_window_is_full_and_when_slopes_agree():
    weights = SlopeWeights(["a", "b"], window=4)
    assert set(fed(weights, [[0.1, 0.2, 0.9], [0.0, 0.0, 0.0]]).values()) == {1.0}
    same = SlopeWeights(["a", "b"], window=4)
    assert list(fed(same, [[0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.7, 0.8]]).values()) == pytest.approx([1.0, 1.0])


def test_saturated_rewards_are_not_mistaken_for_stuck_ones():
    histories = [[1.0] * 20, [0.01 * t for t in range(20)]]
    blind = fed(SlopeWeights(["done", "rising"]), histories)
    seeing = fed(SlopeWeights(["done", "rising"], largest=1.0), histories)
    assert blind["done"] > blind["rising"]
    assert seeing["done"] < seeing["rising"]
    assert sum(seeing.values()) == pytest.approx(2.0)
    assert set(fed(SlopeWeights(["a", "b"], largest=1.0), [[1.0] * 20] * 2).values()) == {1.0}


def test_a_falling_reward_gets_most_and_the_sign_can_be_turned():
    histories = [[-0.01 * t for t in range(20)], [0.0] * 20, [0.01 * t for t in range(20)]]
    stagnant = fed(SlopeWeights(["f", "s", "r"]), histories)
    improving = fed(SlopeWeights(["f", "s", "r"], favour="improving"), histories)
    assert stagnant["f"] > stagnant["s"] > stagnant["r"]
    assert improving["r"] == pytest.approx(stagnant["f"])
    assert stagnant["f"] / stagnant["r"] == pytest.approx(
        (0.8 + 0.2 * 3 * math.e / (math.e + 1 + 1 / math.e)) / (0.8 + 0.2 * 3 / math.e / (math.e + 1 + 1 / math.e)),
        rel=1e-4,
    )


def test_a_slope_needs_two_points_and_a_softmax_a_temperature():
    with pytest.raises(ValueError, match="window is 1, wanted at least 2"):
        SlopeWeights(["a"], window=1)
    with pytest.raises(ValueError, match="temperature is 0.0, wanted above 0"):
        SlopeWeights(["a"], temperature=0.0)


def test_a_reward_that_was_not_given_repeats_and_one_never_given_waits():
    weights = SlopeWeights(["a", "b"], window=3)
    assert fed(weights, [[0.5, 0.5], [NAN, NAN]]) == {"a": 1.0, "b": 1.0}
    assert not weights.history
    fed(weights, [[0.1, NAN, 0.3], [0.7, 0.8, NAN]])
    assert list(weights.history) == [[0.1, 0.7], [0.1, 0.8], [0.3, 0.8]]


def test_the_sum_uses_the_weights_from_before_the_batch_once_per_step():
    method = SlopeWeightedSum(window=2, momentum=0.0, temperature=0.1)
    batches = [torch.tensor([[0.0, 0.5], [0.2, 0.5]]), torch.tensor([[0.4, 0.5], [0.6, NAN]])]
    factors = torch.tensor([1.0, 2.0])
    for step, batch in enumerate(batches):
        reward, stats = method(batch, ("a", "b"), factors, step)
        assert reward.tolist() == pytest.approx((batch.nan_to_num() @ factors).tolist())
        assert stats == {"a": 1.0, "b": 1.0}
    # Slopes 0.4 and 0 (NaN is left out of the mean).
    target = 2 / (1 + math.exp(-4))
    for _ in range(2):  # a second call in the same step changes nothing
        reward, stats = method(batches[0], ("a", "b"), factors, 2)
        assert stats["b"] == pytest.approx(target)
        assert reward[1].item() == pytest.approx(0.2 * (2 - target) + 0.5 * 2 * target)


def test_memory_survives_json():
    first, second = SlopeWeightedSum(window=3), SlopeWeightedSum(window=3)
    assert second.state_dict() == {}
    rows = torch.rand(9, 4, 2, generator=torch.Generator().manual_seed(0))
    for step in range(5):
        first(rows[step], ("a", "b"), torch.ones(2), step)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for step in range(5, 9):
        left, right = (m(rows[step], ("a", "b"), torch.ones(2), step) for m in (first, second))
        assert torch.equal(left[0], right[0])
        assert left[1] == right[1]
