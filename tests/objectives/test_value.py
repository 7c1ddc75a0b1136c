import math

import pytest
import torch

from guerdon.objectives import explained_variance, value
from guerdon.objectives.value import huber_value

NAN = float("nan")
MASK = torch.tensor([[True, True, False], [True, False, False]])
PREDICTION = [[1.0, 2.0, NAN], [3.0, math.inf, NAN]]
VALUES = torch.tensor([[0.0, 2.0, NAN], [1.0, NAN, -math.inf]])
RETURNS = torch.tensor([[2.0, 5.0, NAN], [2.0, math.inf, NAN]])


def prediction():
    return torch.tensor(PREDICTION, requires_grad=True)


def test_half_squared_error_by_hand():
    v = prediction()
    loss, _ = value(v, VALUES, RETURNS, MASK, coef=1.0)
    assert loss.item() == pytest.approx((1 + 9 + 1) / 2 / 3)
    loss.backward()
    torch.testing.assert_close(v.grad, torch.tensor([[-1.0, -3.0, 0.0], [1.0, 0.0, 0.0]]) / 3)
    assert value(v, VALUES, RETURNS, MASK)[0].item() == pytest.approx(0.25 * 11 / 3)
    assert value(v, VALUES, RETURNS, MASK, coef=1.0, aggregate="seq_mean")[0].item() == pytest.approx((2.5 + 0.5) / 2)


def test_clipping_is_pessimistic():
    v = prediction()
    loss, _ = value(v, VALUES, RETURNS, MASK, coef=1.0, clip=0.5)
    # Clipped predictions 0.5, 2, 1.5: squares 2.25, 9, 0.25 against 1, 9, 1.
    assert loss.item() == pytest.approx((2.25 + 9 + 1) / 2 / 3)
    loss.backward()
    # The first action already moved past its bound towards the target: no gradient.
    torch.testing.assert_close(v.grad, torch.tensor([[0.0, -3.0, 0.0], [1.0, 0.0, 0.0]]) / 3)
    wide, _ = value(v, VALUES, RETURNS, MASK, coef=1.0, clip=100.0)
    assert torch.equal(wide, value(v, VALUES, RETURNS, MASK, coef=1.0)[0])


def test_explained_variance():
    target = torch.tensor([1.0, 2.0, 3.0])
    assert explained_variance(target + 7, target) == pytest.approx(1.0)
    assert explained_variance(torch.zeros(3), target) == pytest.approx(0.0)
    assert explained_variance(-target, target) == pytest.approx(-3.0)
    assert math.isnan(explained_variance(target, torch.ones(3)))
    assert math.isnan(explained_variance(torch.zeros(0), torch.zeros(0)))


def test_the_stat_judges_the_values_as_sampled_on_actions_only():
    _, stats = value(prediction(), VALUES, RETURNS, MASK)
    # R = 2, 5, 2 has variance 2; R - v_old = 2, 3, 1 has variance 2/3.
    assert stats["explained_variance"] == pytest.approx(1 - (2 / 3) / 2)


def test_only_the_prediction_is_trained_and_an_empty_mask_is_harmless():
    v, old, target = prediction(), VALUES.clone().requires_grad_(), RETURNS.clone().requires_grad_()
    value(v, old, target, MASK, clip=0.1)[0].backward()
    assert old.grad is None
    assert target.grad is None
    v = prediction()
    loss, stats = value(v, VALUES, RETURNS, torch.zeros_like(MASK), clip=0.1)
    assert loss.item() == 0
    assert math.isnan(stats["explained_variance"])
    loss.backward()
    assert (v.grad == 0).all()
    with pytest.raises(ValueError, match="returns has shape"):
        value(v, VALUES, RETURNS[:1], MASK)


def test_huber_by_hand():
    v = prediction()
    loss, stats = huber_value(v, VALUES, RETURNS, MASK, coef=1.0)
    # Errors -1, -3, 1 and, for values held within 0.2 of the old ones (0.2, 2, 1.2), -1.8, -3, -0.8.
    halves = [0.5 * (abs(e) - 0.25) for e in (1, 3, 1, 1.8, 3, 0.8)]
    assert loss.item() == pytest.approx(sum(halves) / 2 / 3)
    loss.backward()
    # Linear beyond 0.5; the held half has a gradient only where it is not held, at the second action.
    torch.testing.assert_close(v.grad, torch.tensor([[-0.25, -0.5, 0.0], [0.25, 0.0, 0.0]]) / 3)
    assert stats == value(v, VALUES, RETURNS, MASK)[1]
    assert huber_value(v, VALUES, RETURNS, MASK)[0].item() == pytest.approx(sum(halves) / 4 / 3)


def test_huber_is_quadratic_near_the_target():
    v, ones = torch.tensor([[0.9]], requires_grad=True), torch.ones(1, 1)
    loss, _ = huber_value(v, 0.8 * ones, ones, ones, coef=1.0)
    assert loss.item() == pytest.approx(0.1**2 / 2)
    assert huber_value(v, 0.5 * ones, ones, ones, coef=1.0)[0].item() == pytest.approx((0.1**2 / 2 + 0.3**2 / 2) / 2)
